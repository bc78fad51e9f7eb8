#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>

#include "ops/ops.h"
#include "tensor/convert.h"

/// What the benchmarks of operations share.
namespace rwkvx {

inline std::unique_ptr<Ops> make_cpu(int64_t threads, Precision precision = Precision::bf16) {
  return make_ops({.backend = "cpu", .precision = precision, .threads = static_cast<int>(threads)});
}

/// Small values that are different enough, within ±size. Quantised: the same few rows again and again.
inline Buffer filled(DType dtype, Shape shape, double size = 0.5) {
  Buffer buffer(dtype, shape);
  if (is_quantised(dtype)) {
    const int64_t rows = std::min<int64_t>(shape[0], 8);
    convert(filled(DType::f32, {rows, shape[1]}, size), buffer.view().rows(0, rows));
    for (int64_t r = rows; r < shape[0]; ++r)
      convert(buffer.view().rows(r % rows, 1), buffer.view().rows(r, 1));
    return buffer;
  }
  uint64_t state = 1;
  for (int64_t i = 0; i < shape.elements(); ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float value = static_cast<float>(size * (static_cast<double>(state >> 40) * 0x1p-23 - 1));
    if (dtype == DType::f32) buffer.as<float>()[i] = value;
    if (dtype == DType::bf16) buffer.as<BFloat16>()[i] = to_bfloat16(value);
    if (dtype == DType::f16) buffer.as<Float16>()[i] = to_float16(value);
  }
  return buffer;
}

inline void rate(benchmark::State& state, const char* name, double amount_per_iteration) {
  state.counters[name] =
      benchmark::Counter(amount_per_iteration * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace rwkvx
