#pragma once

#include "ops/cpu/scratch.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// Working memory of one thread.
struct Wkv7BackwardScratch {
  Scratch states;    // of some rows of the state, before each token of an interval and behind the last
  Scratch gradient;  // [N, N]
};

/// One head of one sequence. Heads and sequences are independent of each other.
void wkv7_head_backward(const Wkv7Call& call, const Wkv7Gradients& gradients, size_t sequence, int64_t head,
                        Wkv7BackwardScratch& scratch);

}  // namespace rwkvx::cpu
