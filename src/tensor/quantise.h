#pragma once

#include <cstdint>

#include "tensor/dtype.h"

/// Between float32 and GGUF's blocks. Other code uses convert().
namespace rwkvx {

/// Types that dequantise() and quantise() know: q8_0, q4_0, q4_k, q5_k, q6_k.
bool is_computable(DType quantised);

/// `count` elements, whole blocks. Gives what ggml gives, to the last bit: products and differences are
/// float32. Any bytes are values; scales may be infinite or NaN.
void dequantise(const void* blocks, DType type, float* to, int64_t count);

/// The nearest blocks. q8_0 and q4_0 as ggml makes them: the scale is the largest value's, the rest is
/// rounded. The K types look for the scale and minimum of each sub-block that leave the least squared error,
/// large values weighing more. A block with a value that is not finite, or that a float16 scale cannot hold,
/// gets a scale that is not finite.
void quantise(const float* from, DType type, void* blocks, int64_t count);

/// Blocks with a scale that is NaN or infinite.
int64_t count_not_finite_blocks(const void* blocks, DType type, int64_t count);

}  // namespace rwkvx
