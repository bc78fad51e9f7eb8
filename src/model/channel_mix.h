#pragma once

#include "model/mix_input.h"
#include "ops/training.h"
#include "tensor/arena.h"

namespace rwkvx {

/// What the backward needs of a forward pass.
struct ChannelMixKept {
  ConstView x;  // [R, C] real: ln2's output
  View mixed;   // [R, C] active
  View hidden;  // [R, F] active; memory of the caller's, or empty before the forward: the arena's
  bool hidden_known = false;  // the forward leaves it as it is
};

/// residual += W_value · relu(W_key · shift_mix(ln2(x)))². shift: [C] for each sequence. residual may be
/// input.x. docs/math/channel_mix.md. With `keep`, input.normed holds ln2(x) and is not to be overwritten; an
/// empty residual then leaves out the last product, which a backward does not need.
void channel_mix(Ops& ops, const ChannelMixWeights& w, const Batch& batch, std::span<void* const> shift,
                 const MixInput& input, View residual, Arena& arena, ChannelMixKept* keep = nullptr);

/// The backward from a zero shift, or of a piece of longer sequences. d_residual [R, C] is the gradient of
/// what the forward added to; dx [R, C] is written. Gradients of weights are added to.
void channel_mix_backward(Ops& ops, const ChannelMixWeights& w, const ChannelMixGradients& dw,
                          const Batch& batch, const ChannelMixKept& kept, const ShiftNeighbours& around,
                          ConstView d_residual, View dx, Arena& arena);

}  // namespace rwkvx
