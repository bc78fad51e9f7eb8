#pragma once

#include "model/mix_input.h"
#include "ops/training.h"
#include "tensor/arena.h"

namespace rwkvx {

/// State of one RWKV-7 block, one pointer for each sequence of the batch.
struct TimeMixState {
  std::span<void* const> shift;  ///< [C] each
  std::span<void* const> wkv;    ///< [H, N, N] each
};

/// What the backward needs of a forward pass. Before the forward, r, k, v, the `…_down`s, states and read may
/// be memory of the caller's; the others, and what is empty, become temporaries of the pass.
struct TimeMixKept {
  ConstView x;                                        // [R, C] real: ln1's output
  std::array<View, 6> mixed;                          // r w k v a g, [R, C] active
  View decay_down, rate_down, value_down, gate_down;  // [R, rank] active
  Wkv7Operands operands;                              // with inputs and outputs
  View r, k, v, g;                                    // [R, C] real; v is not the caller's in block 0
  View states;                                        // Wkv7Call::kept
  View read, gated;                                   // outputs of wkv7 and of wkv7_output
  // What the caller's memory already holds; the forward leaves it as it is.
  bool projections_known = false;  // r, k, v and the `…_down`s
  bool mixing_known = false;       // states and read
};

/// What the backward of a piece of longer sequences shares with the pieces around it.
struct TimeMixNeighbours {
  ShiftNeighbours shift;
  std::span<void* const> dstates = {};  ///< Wkv7Gradients::dstates
};

/// The time mix of an RWKV-7 block: residual += time_mix(ln1(x)). docs/math/time_mix.md derives it.
/// residual may be input.x. v_first [R, C] real: written by the first block, read by the others. Temporaries
/// come from `arena` and stay taken until the caller's scope ends; with `keep` they are left as the backward
/// needs them (input.normed is ln1(x) and not to be overwritten either), and an empty residual leaves out the
/// last product.
void time_mix(Ops& ops, const TimeMixWeights& w, const Batch& batch, const TimeMixState& state,
              bool first_block, const MixInput& input, View v_first, View residual, Arena& arena,
              TimeMixKept* keep = nullptr);

/// The backward from zero states, or of a piece of longer sequences. d_residual [R, C] is the gradient of
/// what the forward added to (and passes through unchanged); dx [R, C] is written. dv_first [R, C]: the
/// gradient of v_first that later blocks have sent; the first block reads it, the others add to it. Gradients
/// of weights are added to.
void time_mix_backward(Ops& ops, const TimeMixWeights& w, const TimeMixGradients& dw, const Batch& batch,
                       bool first_block, const TimeMixKept& kept, const TimeMixNeighbours& around,
                       ConstView d_residual, View dv_first, View dx, Arena& arena);

}  // namespace rwkvx
