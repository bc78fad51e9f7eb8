#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "tensor/arena.h"

namespace rwkvx {

/// State of one RWKV-7 block, one pointer for each sequence of the batch.
struct TimeMixState {
  std::span<void* const> shift;  ///< [C] each
  std::span<void* const> wkv;    ///< [H, N, N] each
};

/// What the backward needs of a forward pass. The views are that pass's temporaries.
struct TimeMixKept {
  ConstView x;                                        // [R, C] real
  std::array<View, 6> mixed;                          // r w k v a g, [R, C] active
  View decay_down, rate_down, value_down, gate_down;  // [R, rank] active
  Wkv7Operands operands;                              // with inputs and outputs
  View r, g;                                          // [R, C] real
  View states;                                        // Wkv7Call::kept
  View read, gated;                                   // outputs of wkv7 and of wkv7_output
};

/// The time mix of an RWKV-7 block: residual += time_mix(x). docs/math/time_mix.md derives it.
/// x [R, C] real is the block's ln1 output. v_first [R, C] real: written by the first block, read by the
/// others. Temporaries come from `arena` and stay taken until the caller's scope ends; with `keep` they are
/// left as the backward needs them (x is then not to be overwritten either).
void time_mix(Ops& ops, const TimeMixWeights& w, const Batch& batch, const TimeMixState& state,
              bool first_block, ConstView x, View v_first, View residual, Arena& arena,
              TimeMixKept* keep = nullptr);

/// The backward from zero states. d_residual [R, C] is the gradient of what the forward added to (and passes
/// through unchanged); dx [R, C] is written. dv_first [R, C]: the gradient of v_first that later blocks have
/// sent; the first block reads it, the others add to it. Gradients of weights are added to.
void time_mix_backward(Ops& ops, const TimeMixWeights& w, const TimeMixGradients& dw, const Batch& batch,
                       bool first_block, const TimeMixKept& kept, ConstView d_residual, View dv_first,
                       View dx, Arena& arena);

}  // namespace rwkvx
