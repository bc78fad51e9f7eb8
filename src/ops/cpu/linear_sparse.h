#pragma once

#include <algorithm>

#include "ops/cpu/linear_decode.h"
#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"

/// Products of few rows that are zero in most places, as squared ReLUs are: the weights of inputs that are
/// zero in all of them are not read. A row's result does not depend on the rows beside it.
namespace rwkvx::cpu {

inline constexpr int64_t kMostTile = 512;      ///< outputs
inline constexpr int64_t kPairedOutputs = 32;  ///< among which bf16 weights are paired

/// A matrix [out, in] in the order that this needs: tiles of outputs, in each the weights of one input after
/// those of another, [out / tile][in][tile] (the last tile may be narrower, and is as wide as it is). In
/// bf16, of every 32 outputs the i-th and the (16 + i)-th are neighbours: one 32-bit lane holds both. In q8_0
/// the bytes of 32 inputs are followed by their scales, f16: [out / tile][in / 32]([32][tile], [tile]).
struct InputMajor {
  DType type = DType::f32;
  int64_t in = 0, out = 0, tile = 0;
  Buffer memory;  ///< bytes

  int64_t tiles() const { return (out + tile - 1) / tile; }
  int64_t width(int64_t t) const { return std::min(tile, out - t * tile); }
  const std::byte* at(int64_t t) const {
    return static_cast<const std::byte*>(memory.view().data()) + bytes_of(type, t * tile * in);
  }
};

/// False where the type is none of f32, bf16, f16 and q8_0, or outputs are no multiple of 64.
bool can_be_input_major(const ConstView& weight);
InputMajor input_major(const ConstView& weight, ThreadPool& pool);

/// The inputs that are not zero in all rows (NaN is not zero), in order.
struct NonZero {
  int64_t rows = 0;            ///< 1, 2, 4 or 8: those of x, and zeros
  int64_t count = 0;           ///< of inputs
  int32_t* indices = nullptr;  ///< [in]
  float* values = nullptr;     ///< [in, rows]
};
/// Floats of memory that find_non_zero() needs, a multiple of kPadding.
int64_t non_zero_elements(int64_t rows, int64_t in);
/// Of x [rows, in], rows ≤ kFewRows. `memory` is 64-byte aligned.
NonZero find_non_zero(const ConstView& x, float* memory);
/// How many values of a row are not zero.
int64_t count_non_zero(const ConstView& row);

/// sums[r · kMostTile + o] = Σ values · weights for each of x.rows rows and the tile's outputs.
void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums);

}  // namespace rwkvx::cpu
