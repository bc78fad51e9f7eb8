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

/// The time mix of an RWKV-7 block: residual += time_mix(x). docs/math/time_mix.md derives it.
/// x [R, C] real is the block's ln1 output. v_first [R, C] real: written by the first block, read by the
/// others. Temporaries come from `arena` and stay taken until the caller's scope ends.
void time_mix(Ops& ops, const TimeMixWeights& w, const Batch& batch, const TimeMixState& state,
              bool first_block, ConstView x, View v_first, View residual, Arena& arena);

}  // namespace rwkvx
