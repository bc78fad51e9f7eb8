#pragma once

#include "ops/ops.h"

/// Products of few rows: bound by reading the weights, so they are read once, as the file holds them, for all
/// rows of x.
namespace rwkvx::cpu {

inline constexpr int64_t kFewRows = 8;    ///< rows that one pass over the weights serves
inline constexpr int64_t kOutBlock = 64;  ///< outputs that one thread computes at a time
inline constexpr int64_t kPadding = 64;   ///< x rows are padded to a multiple of it: any vector's two

/// Rows first_row .. first_row + rows of call.x as float32 in the order that linear_few_rows() wants, [rows,
/// padded], zeros behind the end. `to` is 64-byte aligned.
void spread_input(const LinearCall& call, int64_t first_row, int64_t rows, int64_t padded, float* to);

/// Outputs out_begin .. out_end of these rows; x is what spread_input() made; rows ≤ kFewRows.
void linear_few_rows(const LinearCall& call, int64_t first_row, int64_t rows, const float* x, int64_t padded,
                     int64_t out_begin, int64_t out_end);

}  // namespace rwkvx::cpu
