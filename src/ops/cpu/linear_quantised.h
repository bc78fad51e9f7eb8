#pragma once

#include "ops/cpu/packed_blocks.h"
#include "ops/ops.h"

/// Products with quantised weights, of few rows and of many: inputs are rounded to 8 bits in blocks of 32, so
/// that products are sums of bytes, and sums of blocks are scaled and added in float32. Weights are read once
/// for all rows of x. A row's result does not depend on the rows beside it.
namespace rwkvx::cpu {

/// x[k] ≈ scale · q[k], scale = max|x| / 127.
struct InputBlock {
  float scale;
  float scaled_sum;  ///< scale · Σ q
  /// What the sums of its products start with, so that weights can be bytes without a sign; one, or for types
  /// with a scale for every 16 elements one for each half.
  int32_t start[2];
  int8_t q[32];
};

/// call.x as blocks [rows, in / 32]. Values that are not finite give scales that are NaN.
void quantise_input(const LinearCall& call, InputBlock* to);

/// sums [rows, kOutBlock] = x · wᵀ for weight rows first .. first + outs (those behind the last give what
/// they like), first in multiples of kGroup, outs ≤ kOutBlock.
struct RowsAndBlocks {
  const PackedBlocks* weight;
  int64_t first, outs;
  const InputBlock* x;  ///< what quantise_input() made
  int64_t rows;
  bool cached;  ///< the weights, by other rows before
  float* sums;
};
void dot_rows_quantised(const RowsAndBlocks& of);

}  // namespace rwkvx::cpu
