#pragma once

#include <optional>
#include <span>

#include "ops/ops.h"

/// The operations of training: the backward of each operation of ops.h, losses and the optimizer. docs/math/
/// derives them.
///
/// Conventions, beside those of ops.h
///   A backward takes the call of its forward (inputs, and outputs where said) and gradients: `d…` is the
///   gradient of the loss with respect to `…`, of its shape, and real.
///   Gradients of activations are written, or, where marked +=, added to.
///   Gradients of parameters are always added to. An empty view: the parameter is frozen, nothing is
///   computed. Unless said otherwise, gradients do not alias each other or anything that is read.
namespace rwkvx {

struct LayerNormBackward {
  ConstView x, gain;  ///< as in the forward
  float eps = 1e-5f;
  ConstView dy;      ///< [R, C]
  View dx;           ///< [R, C], may alias dy when not added
  bool add = false;  ///< dx is added to: the residual stream's gradient
  View dgain, dbias;
};

/// Where the rows of a token shift are a piece of longer sequences, the rows around them; all [C] real.
struct ShiftNeighbours {
  ConstView before;      ///< x of the row before the first, of the same sequence; empty: there is none
  ConstView from_after;  ///< what the row after the last, of the same sequence, sends to dx; empty: none
  View to_before;        ///< written: what the first row sends to the one before; empty: not wanted; may
                         ///< alias from_after
};

struct TokenShiftBackward {
  ConstView x, mix;                  ///< as in the forward, from a zero shift or from around.before
  std::span<const int64_t> offsets;  ///< of x's rows
  std::span<const View> dy;          ///< M of [R, C], read
  View dx;                           ///< [R, C]
  View dmix;                         ///< [M, C]
  ShiftNeighbours around = {};
};

/// dx = du · w, dw += duᵀ · x, with du = dy ⊙ activation′, which follows from y: 1 − y², y (1 − y), 2 √y.
/// The `add` form of the forward sends dy on to what it was added to, which is the caller's affair.
struct LinearBackward {
  ConstView dy;  ///< [R, out]
  ConstView x;   ///< [R, in] as in the forward
  const Matrix* w = nullptr;
  View dx;  ///< [R, in]; empty: not wanted
  View dw;  ///< [out, in]
  Activation activation = Activation::none;
  ConstView y = {};  ///< [R, out] of the forward, real or active; not needed without an activation
  bool add = false;  ///< dx is added to
};

struct Wkv7OperandsGradients {
  ConstView dw, dk, dv, da, db;  ///< of the outputs w, k_out, v_out, a, b
  View ddecay, drate, dvalue_gate, dk_in,
      dv_in;  ///< of the inputs; may alias dw, da, db, dk, dv in this order
  /// [R, C]: +=, the share of v_first. In the first block it is read instead: v is v_first there, and dv_in
  /// contains what the other blocks have sent.
  View dv_first;
  View dw0, da0, dv0, dk_k, dk_a;  ///< parameters
};

/// From the states of Wkv7Call::kept, run forward again for each interval.
struct Wkv7Gradients {
  ConstView dy;
  View dr, dk, dv;  ///< +=: holds what wkv7_output_backward() wrote
  View dw, da, db;  ///< finite also where w is 0
  /// [H, N, N] for each sequence: the gradient of its last state, overwritten with that of its first. Empty:
  /// zero, and not wanted.
  std::span<void* const> dstates = {};
};

struct Wkv7OutputGradients {
  ConstView dy;             ///< [R, C]
  View dx, dr, dk, dv, dg;  ///< [R, C]; one of them may alias dy
  View dr_k, dgain, dbias;  ///< parameters
};

/// Needs ChunkAttention's y, lse and chosen, and pages that hold all rows of each sequence: training starts
/// from empty states. The selection is a constant.
struct ChunkAttentionGradients {
  ConstView dy;     ///< [R, C]
  View dq, dk, dv;  ///< [R, C]
};

/// Where stands what sampled queries have to say: earlier mentions of it, in the query's sequence.
struct Mentions {
  std::span<const int64_t> ends;  ///< [n]: query i has those from ends[i − 1] (of the first: 0) to ends[i]
  std::span<const int64_t> rows;  ///< rows of keys, none behind its query
  std::span<const int64_t> of(size_t query) const {
    const auto first = static_cast<size_t>(query == 0 ? 0 : ends[query - 1]);
    return rows.subspan(first, static_cast<size_t>(ends[query]) - first);
  }
};

/// Teaches the gate of chunk attention where attention would look (docs/math/sparse_attention.md): for
/// sampled queries and each head, the cross entropy between the mass that full causal attention puts on each
/// earlier chunk (a constant) and the softmax of the gates, weighted with the mass outside the own chunk.
/// Where mentions are known, only the mass on them counts, as if it were all.
/// As in ChunkAttentionGradients, pages hold all rows.
struct GateLoss {
  std::span<const int64_t> rows;  ///< the sampled queries, n of R, rising
  std::optional<Mentions> mentions = {};
  float scale = 0;  ///< λ / (n · H): of the gradient
  View losses;      ///< [n, H] real: not scaled; 0 in the first chunk
  View hits;        ///< [n, H] real: 1 where the chunk with the largest gate has the largest mass, 0
                    ///< where not, −1 in the first chunk
  View dq, dk;      ///< [R, C], +=
};

/// Teaches attention where what it has to say stands (docs/math/sparse_attention.md): for sampled queries and
/// each head, −log of the mass that full causal attention puts on the mentions. As in
/// ChunkAttentionGradients, pages hold all rows.
struct PointingLoss {
  std::span<const int64_t> rows;  ///< the sampled queries, n of R, rising
  Mentions mentions;              ///< those that have none are not taught
  float scale = 0;                ///< of the gradient: λ / (taught queries · H)
  View losses;                    ///< [n, H] real: not scaled; 0 where there is no mention
  View hits;  ///< [n, H] real: 1 where no key has a higher score than a mention, 0 where one has, −1 where
              ///< there is no mention
  View dq, dk;  ///< [R, C], +=
};

/// losses = logsumexp(z) − z[target] for each row. The gradient is that of
///   scale · Σ weight · loss + scale · l2wrap · ½ Σ max(z)²
/// over the rows that have a target; L2Wrap (RWKV-LM) keeps the largest logits from drifting.
struct CrossEntropy {
  ConstView logits;                     ///< [R, V] real
  std::span<const int32_t> targets;     ///< [R]; −1: the row does not count and its loss is 0
  std::span<const float> weights = {};  ///< [R]; empty: 1
  float scale = 1;
  float l2wrap = 0;
  View losses;        ///< [R] real, not weighted
  View dlogits = {};  ///< [R, V], may alias logits; empty: losses only
  View hits = {};     ///< [R] real: 1 where no token is likelier than the target, else 0; empty: not wanted
};

/// What the optimizer knows of a tensor.
struct AdamWTensor {
  View master;            ///< real
  ConstView gradient;     ///< real
  View moment1, moment2;  ///< real
  View weight;            ///< real or bf16: the master rounded; may be the master itself
  bool decay = false;     ///< weight decay applies
  float rate_factor = 1;  ///< of the learning rate
};

/// Decoupled weight decay (arXiv 1711.05101), bias-corrected moments:
///   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  g = gradient · gradient_scale
///   θ ← θ (1 − rate · decay) − rate · m̂ / (√v̂ + eps),  m̂ = m / (1 − β₁ᵗ),  v̂ = v / (1 − β₂ᵗ)
struct AdamWStep {
  int64_t step = 1;  ///< t, from 1
  double rate = 0, beta1 = 0.9, beta2 = 0.99, eps = 1e-18, decay = 0;
  double gradient_scale = 1;  ///< clipping
};

class TrainingOps {
 public:
  virtual ~TrainingOps() = default;

  virtual void zero(View x) = 0;

  /// dtable[tokens[i]] += dy[i]. dy [R, C], dtable [V, C].
  virtual void embed_backward(std::span<const int32_t> tokens, ConstView dy, View dtable) = 0;
  virtual void layer_norm_backward(const LayerNormBackward& call) = 0;
  virtual void token_shift_backward(const TokenShiftBackward& call) = 0;
  /// Independent products, except that several may add to one dx or dw: they do so one after another.
  virtual void linear_backward(std::span<const LinearBackward> calls) = 0;
  void linear_backward(const LinearBackward& call) { linear_backward(std::span(&call, 1)); }

  /// The forward's k and v must not have been overwritten (k_out and v_out are not needed).
  virtual void wkv7_operands_backward(const Wkv7Operands& forward,
                                      const Wkv7OperandsGradients& gradients) = 0;
  virtual void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& gradients) = 0;
  virtual void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& gradients) = 0;
  virtual void chunk_attention_backward(const ChunkAttention& forward,
                                        const ChunkAttentionGradients& gradients) = 0;

  virtual void gate_loss(const ChunkAttention& forward, const GateLoss& loss) = 0;
  virtual void pointing_loss(const ChunkAttention& forward, const PointingLoss& loss) = 0;
  virtual void cross_entropy(const CrossEntropy& call) = 0;

  /// sums[i] = Σ xs[i]², in float64. Waits for the result. NaN and infinity in x show in the sum.
  virtual void sums_of_squares(std::span<const ConstView> xs, std::span<double> sums) = 0;
  virtual void adamw(std::span<const AdamWTensor> tensors, const AdamWStep& step) = 0;
};

}  // namespace rwkvx
