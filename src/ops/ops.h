#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "tensor/buffer.h"

/// The operations that the model is made of. The model calls this interface and never a concrete backend;
/// ops/reference is the specification, every other backend is compared with it.
///
/// Conventions
///   R       rows: the tokens of all sequences of a call, one after another
///   offsets S + 1 numbers: sequence s owns rows offsets[s] .. offsets[s + 1]; none is empty
///   C       channels = H heads × N, N = 64; head h owns channels h·N .. (h+1)·N
///   real    the type of the residual stream, norms, states and products' results: float32 (float64 in the
///           reference backend's double mode)
///   active  the type that matrix products take their input in: real, or bfloat16 in bf16 precision
/// Operations round once, when they store. Outputs may alias inputs only where said. Nothing here allocates
/// after the sizes have been seen once, throws on shapes that the model has checked, or synchronises with the
/// host.
namespace rwkvx {

enum class Precision { f32, bf16, f64 };
std::string_view name(Precision precision);

inline constexpr int64_t kHeadSize = 64;

/// A weight matrix [out, in] in the form a backend multiplies with. `weight` is what the file holds (a float
/// type, or a quantised type of tensor/quantise.h whose rows are whole blocks) and must outlive the Matrix;
/// `prepared` is the backend's own, for instance packed tiles.
struct Matrix {
  ConstView weight;
  std::shared_ptr<void> prepared;
  int64_t out() const { return weight.dim(0); }
  int64_t in() const { return weight.dim(1); }
};

enum class Activation { none, tanh, sigmoid, relu_squared };

/// y = activation(x · wᵀ), or y += x · wᵀ when `add` (activation none).
struct LinearCall {
  ConstView x;                ///< [R, in], active (or real)
  const Matrix* w = nullptr;  ///< [out, in]
  View y;                     ///< [R, out], real or active
  Activation activation = Activation::none;
  bool add = false;
};

/// From projections to the operands of the WKV-7 recurrence. All [R, C] real; parameters [C] real.
///   w = exp(−e^(−1/2) · σ(w0 + decay))            decay factor, in (0.5452, 1)
///   η = σ(a0 + rate)                              in-context learning rate
///   v ← v + (v_first − v) · σ(v0 + value_gate)    value residual; not in the first block (v0 empty)
///   κ = normalize(k · k_k) per head (‖·‖ clamped to ≥ 1e-12);  a = −κ;  b = κ · η
///   k ← k · (1 + (η − 1) · k_a)
/// k_out and v_out may alias k and v. Source: RWKV-7 "Goose", arXiv 2503.14456, equations 4–8.
struct Wkv7Operands {
  ConstView decay, rate, value_gate;  ///< low-rank outputs; value_gate empty in the first block
  ConstView k, v, v_first;
  ConstView w0, a0, v0, k_k, k_a;
  View w, k_out, v_out, a, b;
  std::span<const uint8_t> reset =
      {};  ///< [R] or empty; where not 0, w and a are zero: the state is forgotten
};

/// Rows of a sequence between two states that a forward pass keeps for the backward.
inline constexpr int64_t kWkv7Interval = 32;
/// K = Σ over sequences ⌈rows / kWkv7Interval⌉.
int64_t wkv7_intervals(std::span<const int64_t> offsets);

/// S ← S · diag(w) + (S a) bᵀ + v kᵀ;  y = S r, per head, token by token. All [R, C] real.
/// S is [H, N, N] real, rows the value dimension, columns the key dimension; states[s] is read and
/// overwritten. w may be 0 (a reset).
struct Wkv7Call {
  ConstView r, w, k, v, a, b;
  std::span<const int64_t> offsets;
  std::span<void* const> states;
  View y;
  View kept = {};  ///< [K, H, N, N] real or empty: S before each interval, sequence after sequence
};

/// y = (group_norm(x) + (Σₙ r·k·r_k) · v) · g: per-head normalisation with gain, bias and eps = 64e-5, the
/// bonus of the current token, and the output gate. All [R, C]; y active; x is what wkv7() gave.
struct Wkv7Output {
  ConstView x, r, k, v, g;
  ConstView r_k, gain, bias;  ///< [C] real
  float eps = 64e-5f;
  View y;
};

/// layer_norm(x), then token_shift() over its rows: y[m] = n + (prev − n) · mix[m], n = layer_norm(x), prev
/// the row of n before in the same sequence; before a sequence's first row, last[s] [C] real, which is
/// overwritten with its last row of n. x, y, mix and the rest as in the two operations.
struct NormShift {
  ConstView x, gain, bias;
  float eps = 1e-5f;
  View normed = {};            ///< [R, C] real: n
  bool normed_needed = false;  ///< otherwise normed is room for a temporary and holds anything afterwards
  ConstView mix = {};
  std::span<const int64_t> offsets = {};
  std::span<void* const> last = {};
  std::span<const View> y;
};

/// wkv7_operands(), wkv7() and wkv7_output(), one after another. What the first two hand on to the next (w,
/// k_out, v_out, a, b and the recurrence's y) is room for temporaries and holds anything afterwards; only a
/// v_out that is v where there is no value_gate (the first block) stays what it is.
struct Wkv7Step {
  Wkv7Operands operands;
  Wkv7Call recurrence;
  Wkv7Output output;
};

/// Told which memory is read, so that a store that is larger than memory can let go of it (a mapped file).
/// Called from any thread.
class ReadObserver {
 public:
  /// `bytes` at `data` are about to be read, by `readers` queries.
  virtual void read(const void* data, uint64_t bytes, int64_t readers) noexcept = 0;

 protected:
  ~ReadObserver() = default;
};

/// What a backend computes from the keys of chunks that are full, and keeps for later calls. Whoever owns the
/// store drops it when these keys change.
class KvDerived {
 public:
  KvDerived() = default;
  KvDerived(const KvDerived&) = delete;
  KvDerived& operator=(const KvDerived&) = delete;
  virtual ~KvDerived() = default;
};

/// Keys and values of one sequence in one sparse block, paged by chunk: keys [H, B, N] and values [H, B, N]
/// in `dtype` (f32, f64, bf16 or i8); `key_sums[c]` is Σ of the chunk's keys as stored, [H, N] real. In i8 a
/// row of N has a scale, [H, B] float32: x = scale · i8, scale = max|x| / 127, rounded to nearest even.
struct KvChunks {
  int64_t chunk_size = 0;  ///< B
  int64_t length = 0;      ///< tokens stored, or to be stored when kv_append returns
  DType dtype = DType::f32;
  std::span<void*const> keys, values;  ///< one per chunk, ⌈length / B⌉
  std::span<void* const> key_sums;
  std::span<float*const> key_scales, value_scales;  ///< i8 only
  /// Sums of the keys of every `part` tokens of a chunk, [H, B / part, N] real, which then choose chunks in
  /// place of key_sums: the gate of a chunk is the largest of its parts'. 0 and empty: not kept.
  int64_t part = 0;
  std::span<void* const> part_sums;
  ReadObserver* observer = nullptr;  ///< told by chunk_attention; may be null
  std::unique_ptr<KvDerived>* derived =
      nullptr;  ///< for chunk_attention to keep beside the store; may be null
  /// The keys and values of the first `far` chunks, all full, lie in Ops::host_memory(), or if `far_mapped`
  /// in a mapped file, which a GPU cannot read. Of what is read of them, copies of up to `near_bytes` may be
  /// kept in `derived`.
  int64_t far = 0;
  bool far_mapped = false;
  uint64_t near_bytes = 0;
};

/// Top-k chunk attention (MoBA, arXiv 2502.13189, as trained by RWKV-X, arXiv 2504.21463). The rows of
/// sequence s are the last of the tokens in kv[s]. Per head, the query at position t in chunk c = ⌊t/B⌋ sees
/// the keys of chunk c at positions ≤ t, and all keys of the top_k − 1 chunks j < c with the largest gate q ·
/// mean(keys of j), or with KvChunks::part the largest q · mean(keys of a part of j) (ties: the lower j).
/// Scores q·k / √N, softmax, no positional encoding.
struct ChunkAttention {
  ConstView q;  ///< [R, C] real
  std::span<const int64_t> offsets;
  std::span<const KvChunks> kv;
  int64_t top_k = 0;
  View y;  ///< [R, C] active
  // For the backward, or empty:
  View lse = {};     ///< [R, H] real: log Σ exp(score) over what a query sees
  View chosen = {};  ///< [R, H, top_k − 1] i32: the earlier chunks seen, in any order; then −1
};

/// What queries attend to: row r of q is that of token first + r·step of kv. Each with a full causal softmax
/// over the keys at its position and before (scores q·k / √N), votes[h, j] += its weight on token j,
/// j < candidates ≤ first (SnapKV, arXiv 2404.14469).
struct KvVote {
  ConstView q;  ///< [R, C] real
  KvChunks kv;
  int64_t first = 0, step = 1;
  View votes;  ///< [H, candidates] real

  /// Tokens of kv up to that of the last row.
  int64_t seen() const { return q.dim(0) > 0 ? first + (q.dim(0) - 1) * step + 1 : 0; }
};

/// How unlike the others each key is: scores[h, j] = −k[h, j]·m[h] / (‖k[h, j]‖ ‖m[h]‖), m[h] the sum of
/// k[h, i] / ‖k[h, i]‖ over the candidates i (KeyDiff, arXiv 2504.15364); 0 where either norm is. From −1,
/// the same direction as most, to 1.
struct KvDistinct {
  KvChunks kv;
  View scores;  ///< [H, candidates] real, candidates ≤ kv.length
};

class TrainingOps;

class Ops {
 public:
  virtual ~Ops() = default;

  virtual std::string_view name() const = 0;
  /// What it computes with, for people: instruction sets of the processor, or the GPU's name.
  virtual std::string hardware() const { return "any processor"; }
  virtual Precision precision() const = 0;
  virtual Allocator& allocator() = 0;
  /// Of the host, which kernels read and write too, if slowly: for what does not fit into allocator()'s.
  virtual Allocator& host_memory() { return allocator(); }
  /// Whether kernels read and write any memory of the host, mapped files too.
  virtual bool reads_host_memory() const { return true; }
  virtual int threads() const { return 1; }  ///< of the host, that it computes with
  /// Whether chunk_attention() takes queries and the weights of softmaxes rounded to bfloat16, as tensor
  /// cores and tiles do, where there are many queries; the cpu only where lse is not kept for a backward.
  virtual bool rounds_attention() const { return false; }
  /// Whether wkv7_step() takes the recurrence's operands rounded to bfloat16, as tiles do, where a sequence
  /// has so many rows.
  virtual bool rounds_recurrence(int64_t /*rows*/) const { return false; }
  DType real() const { return precision() == Precision::f64 ? DType::f64 : DType::f32; }
  /// What products take; a backend may answer f32 in bf16 precision where the processor has no bf16 products.
  virtual DType active() const { return precision() == Precision::bf16 ? DType::bf16 : real(); }
  /// What keys and values are best stored in where the weights that they come from have this type.
  virtual DType kv_type(DType /*weights*/) const {
    return precision() == Precision::bf16 ? DType::bf16 : real();
  }

  /// Makes a weight [out, in] ready for linear(); it must not change afterwards where `sparse_input`, which
  /// says that most values of x will be exactly zero. Errors: a type that the backend cannot multiply with.
  virtual Matrix prepare(ConstView weight, bool sparse_input) = 0;
  Matrix prepare(ConstView weight) { return prepare(weight, false); }

  /// Makes a table [V, C] of any float or quantised type ready for embed(), which takes the result's weight.
  virtual Matrix prepare_table(ConstView table) { return {table, nullptr}; }

  /// y[i] = table[tokens[i]].  table [V, C] any float or quantised type, y [R, C] real. Tokens have been
  /// checked.
  virtual void embed(std::span<const int32_t> tokens, ConstView table, View y) = 0;

  /// Over the last dimension, biased variance. x [R, C] real, gain and bias [C] real, y [R, C] real or
  /// active; y may alias x.
  virtual void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) = 0;

  /// y[m] = x + (prev − x) · mix[m], prev the row before in the same sequence; before a sequence's first row,
  /// last[s] [C] real, which is overwritten with its last row. x [R, C] real, mix [M, C] real, y: M of [R, C]
  /// active.
  virtual void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets,
                           std::span<void* const> last, std::span<const View> y) = 0;

  /// Independent products; a backend may run them together.
  virtual void linear(std::span<const LinearCall> calls) = 0;
  void linear(const LinearCall& call) { linear(std::span(&call, 1)); }

  virtual void wkv7_operands(const Wkv7Operands& call) = 0;
  virtual void wkv7(const Wkv7Call& call) = 0;
  virtual void wkv7_output(const Wkv7Output& call) = 0;

  /// Fused operations: the defaults call those that they are made of.
  virtual void norm_shift(const NormShift& call);
  /// norm_shift(), or with an empty mix layer_norm() to y[0], and then linear(): each call's x is one of
  /// norm.y, which are room for temporaries and hold anything afterwards.
  virtual void norm_shift_linear(const NormShift& norm, std::span<const LinearCall> calls);
  virtual void wkv7_step(const Wkv7Step& call);

  /// Stores the rows of sequence s as the last tokens of kv[s] (room is there) and adds them to key_sums, in
  /// order. k, v [R, C] real.
  virtual void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                         std::span<const KvChunks> kv) = 0;
  virtual void chunk_attention(const ChunkAttention& call) = 0;
  virtual void kv_vote(const KvVote& call) = 0;
  virtual void kv_distinct(const KvDistinct& call) = 0;
  /// Per head, token i becomes what token kept[h, i] was, for i < K; the others go. kept [H, K] i32 rises
  /// along i. In place: kv.length counts the tokens before; key_sums of the ⌈K / B⌉ chunks that stay are
  /// computed anew, in order.
  virtual void kv_keep(const KvChunks& kv, ConstView kept) = 0;

  /// y[i] = x[rows[i]]: picks the rows whose logits are wanted. Types equal.
  virtual void gather_rows(ConstView x, std::span<const int64_t> rows, View y) = 0;

  /// Between this backend's memory and the host's.
  virtual void upload(std::span<const std::byte> host, void* device) = 0;
  virtual void download(const void* device, std::span<std::byte> host) = 0;
  /// Within this backend's memory. The default goes through the host.
  virtual void copy(const void* from, void* to, size_t bytes);

  /// Waits until all that was asked for is done, for timing. Errors: what went wrong in it.
  virtual void synchronize() {}

  /// Calls `work`, or does again what it did when it was called with this key before: a key stands for the
  /// same operations on the same memory. Starting many small operations one by one can take longer than they
  /// do.
  virtual void replay(uint64_t, const std::function<void()>& work) { work(); }

  /// Long inputs are best given in pieces of so many rows at most, with so many bytes of temporaries.
  struct Pieces {
    int64_t rows = 8192, bytes = int64_t{384} << 20;
  };
  virtual Pieces pieces() const { return {}; }

  /// What training needs beyond this, ops/training.h. Errors: a backend that cannot train.
  virtual TrainingOps& training();
};

/// What names a backend, for help texts.
inline constexpr const char* kDeviceHelp =
    "cpu, cuda (an NVIDIA GPU; cuda:1 for the second) or reference (slow, scalar: the specification)";
bool is_backend(std::string_view text);

struct OpsOptions {
  std::string_view backend = "cpu";  ///< "cpu", "cuda", "cuda:1" for the second GPU, or "reference"
  Precision precision = Precision::bf16;
  int threads = 0;  ///< 0: one for each core of the machine that the process may run on
};

/// Errors: an unknown backend or one that this build lacks; a precision that it does not have.
std::unique_ptr<Ops> make_ops(const OpsOptions& options);

}  // namespace rwkvx
