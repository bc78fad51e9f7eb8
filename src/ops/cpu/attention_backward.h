#pragma once

#include "ops/cpu/scratch.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// Working memory of one thread.
struct AttentionBackwardScratch {
  Scratch deltas;    // float [rows]: dy · y
  Scratch counts;    // int32 [chunks + 1]
  Scratch requests;  // int32 [rows · (top_k − 1)]: rows, ordered by the chunk that they chose
};

/// One head of one sequence. Heads and sequences are independent of each other.
void attend_backward(const ChunkAttention& call, const ChunkAttentionGradients& gradients, size_t sequence,
                     int64_t head, AttentionBackwardScratch& scratch);

}  // namespace rwkvx::cpu
