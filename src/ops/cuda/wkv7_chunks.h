#pragma once

#include "ops/cuda/gpu.h"
#include "ops/cuda/wkv7_sequences.h"
#include "ops/training.h"

namespace rwkvx::cuda {

/// Shorter sequences go token by token.
inline constexpr int64_t kWkv7FewestRows = 192;

/// How the sequences of a launch are cut so that there is work for the whole GPU: chunks depend on each other
/// only through S′ = S P + Q, and segments of many chunks find their P and Q side by side.
struct Wkv7Segments {
  int64_t rows = 0;  // of a segment: whole chunks
  int64_t most = 1;  // of a sequence
};
Wkv7Segments wkv7_segments(const Gpu& gpu, const Wkv7Sequences& sequences, int heads);

/// maps [sequence, segment, head, 2, N, N], P and Q of every segment: Q becomes the state before the segment,
/// from S′ = S P + Q. `backwards`: the state behind it, from the last segment to the first. A sequence
/// without a state begins with zero.
void wkv7_scan_segments(Gpu& gpu, const Wkv7Sequences& sequences, int heads, Wkv7Segments segments,
                        bool backwards, float* maps);

/// The recurrence in chunks on the tensor cores: factors are rounded to tf32, sums and states are float32.
void wkv7_in_chunks(Gpu& gpu, const Wkv7Call& call, const Wkv7Sequences& sequences);
/// Its backward; the sequences' states are their gradients. dw is zero where w is.
void wkv7_backward_in_chunks(Gpu& gpu, const Wkv7Call& call, const Wkv7Gradients& gradients,
                             const Wkv7Sequences& sequences);

}  // namespace rwkvx::cuda
