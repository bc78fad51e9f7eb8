#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "tensor/arena.h"

namespace rwkvx {

/// residual += W_value · relu(W_key · shift_mix(x))². x [R, C] real is the block's ln2 output; shift: [C] for
/// each sequence. docs/math/channel_mix.md.
void channel_mix(Ops& ops, const ChannelMixWeights& w, const Batch& batch, std::span<void* const> shift,
                 ConstView x, View residual, Arena& arena);

}  // namespace rwkvx
