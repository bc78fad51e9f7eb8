#pragma once

#include "ops/cpu/scratch.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// Working memory of one thread.
struct PointingLossScratch {
  Scratch scores;  // float [keys, queries], of one block of queries; later their gradients
};

/// One head of one sequence's sampled queries. Heads and sequences are independent of each other.
void pointing_loss_head(const ChunkAttention& call, const PointingLoss& loss, size_t sequence, int64_t head,
                        PointingLossScratch& scratch);

}  // namespace rwkvx::cpu
