#pragma once

#include "harness.h"

namespace rwkvx::test {

/// The pages of one sequence's keys and values as tensors of a run.
struct KvPages {
  std::vector<void*> keys, values, sums, part_sums;
  std::vector<float*> key_scales, value_scales;  // i8 only
  int64_t chunk_size;
  DType dtype;
  int64_t part = 0;

  /// Filled up to `length` tokens; behind them NaN (i8: in the scales), which must not be read. Key sums are
  /// drawn freely from a grid: with queries from a grid gates are exact in float32, and many are ties.
  static KvPages filled(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t length,
                        DType dtype, int64_t part = 0);
  /// Filled, to be written to: keys from a grid, so that sums are exact in float32, and no sums yet.
  static KvPages changing(Run& run, const std::string& name, int64_t heads, int64_t chunk_size,
                          int64_t length, DType dtype, int64_t part = 0);
  /// Room for `capacity` tokens, to be written by kv_append.
  static KvPages empty(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t capacity,
                       DType dtype, int64_t part = 0);

  KvChunks at(int64_t length) const;

 private:
  /// Of rows: `width` N, or 1 for scales.
  void add(Run& run, const std::string& name, int64_t heads, int64_t begin, bool written, const Values& keys,
           const Values& values, int64_t valid);
};

/// Attention's y is a mean of values whose weights are off by twice the error of a score (a sum of 64 terms
/// over √64) and by exp's; summing `keys` of them adds the last term. q, k, v: the largest norms.
Tolerance attention_tolerance(const Run& run, double q, double k, double v, int64_t keys);

/// Of a score whose query is rounded to bfloat16: independent relative errors of deviation kBf16 / √3 in
/// products whose squares add up to at most (‖q‖ · the largest key)²; eight deviations, over √64.
double rounded_score(double q, double largest);

}  // namespace rwkvx::test
