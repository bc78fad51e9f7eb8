#pragma once

#include "ops/cuda/wkv7_chunks.h"

namespace rwkvx::cuda {

/// maps [sequence, segment, head, 2, N, N]: P and Q of the gradient of the state, from behind a segment to
/// before it; not of the first.
void wkv7_backward_maps(Gpu& gpu, const Wkv7Call& call, const Wkv7Gradients& gradients,
                        const Wkv7Sequences& sequences, Wkv7Segments segments, float* maps);

}  // namespace rwkvx::cuda
