#pragma once

#include "ops/cpu/prefetch.h"
#include "ops/ops.h"

/// Products of few rows: bound by reading the weights, so they are read once, as the file holds them, for all
/// rows of x. A row's result does not depend on the rows beside it.
namespace rwkvx::cpu {

inline constexpr int64_t kFewRows = 8;    ///< rows that one pass over the weights serves
inline constexpr int64_t kOutBlock = 64;  ///< outputs that one thread computes at a time
inline constexpr int64_t kPadding = 64;   ///< x rows are padded to a multiple of it: any vector's two

/// call.x as float32 in the order that dot_few_rows() wants, [rows, padded], zeros behind the end. `to` is
/// 64-byte aligned.
void spread_input(const LinearCall& call, int64_t padded, float* to);

/// sums [rows, kOutBlock] = x · wᵀ for weight rows first .. first + outs, in float32. x is what
/// spread_input() made; rows ≤ kFewRows, outs ≤ kOutBlock. From memory weight rows are read one after
/// another, for hardware that fetches ahead follows one stream best; where they are `cached`, and arithmetic
/// bounds, several share what is loaded of x.
void dot_few_rows(const ConstView& weight, int64_t first, int64_t outs, const float* x, int64_t rows,
                  int64_t padded, bool cached, float* sums);

/// The same for bf16 weights and bf16 x [rows, in], with AVX512_BF16's products: twice as fast where
/// arithmetic bounds. They are added in pairs, without subnormals. Only where has_bf16_dot().
void dot_few_rows_bf16(const ConstView& weight, int64_t first, int64_t outs, const BFloat16* x, int64_t rows,
                       bool cached, float* sums);
bool has_bf16_dot();

/// x [rows, in] bf16 as TileFewRows::x.
void pair_rows(const ConstView& x, float* to);
/// TileFewRows::sums, [outs, rows], as the other sums, [rows, kOutBlock].
void turn_tile_sums(const float* from, int64_t outs, int64_t rows, float* sums);

/// call.y = activation(sums) or += sums, for outputs first .. first + outs.
void finish_few_rows(const LinearCall& call, int64_t first_row, int64_t rows, int64_t first, int64_t outs,
                     const float* sums);

}  // namespace rwkvx::cpu
