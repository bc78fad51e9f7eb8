#pragma once

#include "ops/cpu/scratch.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// Working memory of one thread.
struct GateLossScratch {
  Scratch chunks;     // float [3, chunks, queries] and a tile: of one block of queries
  Scratch gradients;  // float [chunks, N]: of the keys' sums
};

/// One head of one sequence's sampled queries. Heads and sequences are independent of each other.
void gate_loss_head(const ChunkAttention& call, const GateLoss& loss, size_t sequence, int64_t head,
                    GateLossScratch& scratch);

}  // namespace rwkvx::cpu
