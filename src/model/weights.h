#pragma once

#include <array>
#include <memory>
#include <type_traits>
#include <vector>

#include "model/checkpoint.h"
#include "model/config.h"
#include "model/tensor_list.h"
#include "ops/ops.h"

namespace rwkvx {

/// The structs below hold a slot for every tensor: Vector for [C], MatrixSlot for matrices. Weights has views
/// and prepared matrices there, Gradients has views to add to.
template <typename Vector>
struct NormSlots {
  Vector gain, bias;  // [C]
};

template <typename Vector, typename MatrixSlot>
struct TimeMixSlots {
  std::array<Vector, 6> x;  // [C] each, for r w k v a g
  Vector mix;               // [6, C]: the same memory as x
  Vector w0, a0, v0, k_k, k_a, r_k;
  MatrixSlot w1, w2, a1, a2, v1, v2, g1, g2;  // [rank, C] and [C, rank]
  MatrixSlot receptance, key, value, output;  // [C, C]
  NormSlots<Vector> ln_x;
};

template <typename MatrixSlot>
struct AttentionSlots {
  MatrixSlot receptance, key, value, output;  // [C, C]
};

template <typename Vector, typename MatrixSlot>
struct ChannelMixSlots {
  Vector x_k;             // [C]
  MatrixSlot key, value;  // [F, C], [C, F]
};

template <typename Vector, typename MatrixSlot>
struct RwkvBlockSlots {
  NormSlots<Vector> ln1, ln2;
  TimeMixSlots<Vector, MatrixSlot> att;
  ChannelMixSlots<Vector, MatrixSlot> ffn;
};

template <typename Vector, typename MatrixSlot>
struct SparseBlockSlots {
  NormSlots<Vector> ln1, ln2;
  AttentionSlots<MatrixSlot> att;
  ChannelMixSlots<Vector, MatrixSlot> ffn;
};

/// All parameters of a model. for_each() is the only list of them: loading, saving, counting, fingerprints,
/// gradients and optimizer states walk it.
template <typename Vector, typename MatrixSlot>
struct ModelSlots {
  Vector embedding;  // [V, C], any float or quantised type
  NormSlots<Vector> ln0, ln_out;
  std::vector<RwkvBlockSlots<Vector, MatrixSlot>> blocks;
  std::vector<SparseBlockSlots<Vector, MatrixSlot>> sparse;
  MatrixSlot head;  // [V, C]

  ModelSlots() = default;
  /// Empty slots for every block of a model of this size.
  explicit ModelSlots(const ModelConfig& config)
      : blocks(static_cast<size_t>(config.layers)), sparse(static_cast<size_t>(config.sparse_blocks)) {}

  /// Calls visit(const TensorSpec&, slot) for every tensor in the order of public checkpoints; slot is a
  /// MatrixSlot& or a Vector& (const if `self` is).
  template <typename Self, typename Visit>
  static void for_each(Self& self, const ModelConfig& c, Visit&& visit);

 private:
  template <typename Slots, typename Visit>
  static void norm(const std::string& name, Slots& slots, int64_t width, Visit& visit) {
    visit(TensorSpec{name + ".weight", {width}, Role::norm}, slots.gain);
    visit(TensorSpec{name + ".bias", {width}, Role::norm}, slots.bias);
  }
  template <typename Slots, typename Visit>
  static void channel_mix(const std::string& prefix, Slots& slots, const ModelConfig& c, Visit& visit) {
    visit(TensorSpec{prefix + "x_k", {c.channels}, Role::mix}, slots.x_k);
    visit(TensorSpec{prefix + "key.weight", {c.ffn, c.channels}, Role::projection}, slots.key);
    visit(TensorSpec{prefix + "value.weight", {c.channels, c.ffn}, Role::projection, true}, slots.value);
  }
  template <typename Slots, typename Visit>
  static void projections(const std::string& prefix, Slots& slots, const ModelConfig& c, Visit& visit) {
    const Shape square{c.channels, c.channels};
    visit(TensorSpec{prefix + "receptance.weight", square, Role::projection}, slots.receptance);
    visit(TensorSpec{prefix + "key.weight", square, Role::projection}, slots.key);
    visit(TensorSpec{prefix + "value.weight", square, Role::projection}, slots.value);
    visit(TensorSpec{prefix + "output.weight", square, Role::projection}, slots.output);
  }
  template <typename Slots, typename Visit>
  static void time_mix(const std::string& prefix, Slots& slots, bool first, const ModelConfig& c,
                       Visit& visit);
};

using NormWeights = NormSlots<ConstView>;
using TimeMixWeights = TimeMixSlots<ConstView, Matrix>;
using AttentionWeights = AttentionSlots<Matrix>;
using ChannelMixWeights = ChannelMixSlots<ConstView, Matrix>;
using RwkvBlockWeights = RwkvBlockSlots<ConstView, Matrix>;
using SparseBlockWeights = SparseBlockSlots<ConstView, Matrix>;
using Weights = ModelSlots<ConstView, Matrix>;

/// Real views that backward passes add to; empty where a tensor is frozen.
using NormGradients = NormSlots<View>;
using TimeMixGradients = TimeMixSlots<View, View>;
using AttentionGradients = AttentionSlots<View>;
using ChannelMixGradients = ChannelMixSlots<View, View>;
using RwkvBlockGradients = RwkvBlockSlots<View, View>;
using SparseBlockGradients = SparseBlockSlots<View, View>;
using Gradients = ModelSlots<View, View>;

/// Every tensor of a model of this size, in for_each() order.
std::vector<TensorSpec> tensor_list(const ModelConfig& config);

/// Errors: a missing, extra or misshaped tensor, by name and with both shapes; a vector that is not of a
/// float type, an embedding that is of no type with values.
void check_tensors(const Checkpoint& checkpoint);

/// Reads the weights of a checkpoint. Matrices stay in the file's memory and type; vectors become float32
/// (float64 in f64 precision). Warns, naming the tensor, when a value is NaN or infinite. Errors: those of
/// check_tensors; a matrix of a type that the backend cannot multiply with.
class LoadedWeights {
 public:
  LoadedWeights(std::shared_ptr<const Checkpoint> checkpoint, Ops& ops);
  const Weights& weights() const { return weights_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  const ModelConfig& config() const { return checkpoint_->config; }
  /// Hash of sizes and values, the same for one model in different file formats of one type.
  uint64_t fingerprint() const;

 private:
  std::shared_ptr<const Checkpoint> checkpoint_;
  Buffer vectors_;
  std::vector<Buffer> copies_;  // of matrices
  Matrix table_;                // of the embedding
  Weights weights_;
};

// ---------------------------------------------------------------------------------------------------------------------

template <typename Vector, typename MatrixSlot>
template <typename Slots, typename Visit>
void ModelSlots<Vector, MatrixSlot>::time_mix(const std::string& p, Slots& s, bool first,
                                              const ModelConfig& c, Visit& visit) {
  const int64_t C = c.channels;
  const auto vector = [&](const char* name, Role role, auto& slot) {
    visit(TensorSpec{p + name, {C}, role}, slot);
  };
  const auto low_rank = [&](const char* down, const char* up, int64_t rank, auto& down_slot, auto& up_slot) {
    visit(TensorSpec{p + down, {rank, C}, Role::low_rank}, down_slot);
    visit(TensorSpec{p + up, {C, rank}, Role::low_rank}, up_slot);
  };
  constexpr std::array<const char*, 6> kMix{"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"};
  for (size_t i = 0; i < kMix.size(); ++i) vector(kMix[i], Role::mix, s.x[i]);
  vector("w0", Role::offset, s.w0);
  low_rank("w1", "w2", c.decay_rank, s.w1, s.w2);
  vector("a0", Role::offset, s.a0);
  low_rank("a1", "a2", c.rate_rank, s.a1, s.a2);
  if (!first) {
    vector("v0", Role::offset, s.v0);
    low_rank("v1", "v2", c.value_rank, s.v1, s.v2);
  }
  low_rank("g1", "g2", c.gate_rank, s.g1, s.g2);
  vector("k_k", Role::scale, s.k_k);
  vector("k_a", Role::scale, s.k_a);
  vector("r_k", Role::bonus, s.r_k);
  projections(p, s, c, visit);
  norm(p + "ln_x", s.ln_x, C, visit);
}

template <typename Vector, typename MatrixSlot>
template <typename Self, typename Visit>
void ModelSlots<Vector, MatrixSlot>::for_each(Self& self, const ModelConfig& c, Visit&& visit) {
  visit(TensorSpec{"emb.weight", {c.vocab, c.channels}, Role::embedding}, self.embedding);
  for (int64_t i = 0; i < c.layers; ++i) {
    auto& block = self.blocks[static_cast<size_t>(i)];
    const std::string p = "blocks." + std::to_string(i) + ".";
    if (i == 0) norm(p + "ln0", self.ln0, c.channels, visit);
    norm(p + "ln1", block.ln1, c.channels, visit);
    norm(p + "ln2", block.ln2, c.channels, visit);
    time_mix(p + "att.", block.att, i == 0, c, visit);
    channel_mix(p + "ffn.", block.ffn, c, visit);
  }
  for (int64_t j = 0; j < c.sparse_blocks; ++j) {
    auto& block = self.sparse[static_cast<size_t>(j)];
    const std::string p = "moba." + std::to_string(j) + ".";
    norm(p + "ln1", block.ln1, c.channels, visit);
    norm(p + "ln2", block.ln2, c.channels, visit);
    projections(p + "att.", block.att, c, visit);
    channel_mix(p + "ffn.", block.ffn, c, visit);
  }
  norm("ln_out", self.ln_out, c.channels, visit);
  visit(TensorSpec{"head.weight", {c.vocab, c.channels}, Role::head}, self.head);
}

}  // namespace rwkvx
