#pragma once

#include <algorithm>
#include <span>

#include "ops/cuda/activation.h"
#include "ops/cuda/ahead.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/weight_units.h"

/// Several products of few rows that share a launch.
namespace rwkvx::cuda {

inline constexpr int kFewRowsJobs = 8;  // of a launch

/// Where products go, [R, out], and what is done with them.
struct Result {
  void* y;  // float or Bf16
  Activation activation;
  bool add, y_bf16;
};
inline Result result_of(const FewRowsCall& call) {
  return {call.y.data(), call.activation, call.add, call.y.dtype() == DType::bf16};
}
__device__ __forceinline__ void store_result(const Result& to, int64_t at, float sum) {
  if (to.y_bf16) {
    static_cast<Bf16*>(to.y)[at] = from_float<Bf16>(activate(to.activation, sum));
  } else {
    float* y = static_cast<float*>(to.y) + at;
    *y = to.add ? *y + sum : activate(to.activation, sum);
  }
}

/// By the first warp of each block.
__device__ __forceinline__ void fetch_ahead(const Ahead& ahead, int block, int blocks) {
  constexpr uint32_t kPiece = 4096;
  if (threadIdx.x >= 32) return;
  const uint32_t lane = static_cast<uint32_t>(block) * 32 + threadIdx.x;
  for (int i = 0; i < ahead.count; ++i) {
    const Ahead::Range range = ahead.of[i];
    for (uint32_t at = lane * kPiece; at < range.bytes; at += static_cast<uint32_t>(blocks) * 32 * kPiece) {
      prefetch_bulk_l2(range.at + at, min(kPiece, range.bytes - at));
    }
  }
}

struct FewRowsJob {
  WeightRows w;
  const void* x;  // [R, in]
  Result result;
  int in, out, units;
  int first_block;
  int splits;  // warps that share a tile
  bool constant;
  RowsAhead rows_ahead;
};
struct FewRowsJobs {
  int count, rows, blocks;
  Ahead ahead;
  FewRowsJob of[kFewRowsJobs];

  __device__ __forceinline__ const FewRowsJob& of_block(int block) const {
    int which = 0;
    while (which + 1 < count && block >= of[which + 1].first_block) ++which;
    return of[which];
  }
};

__device__ __forceinline__ void store_result(const FewRowsJob& job, int row, int output, float sum) {
  store_result(job.result, static_cast<int64_t>(row) * job.out + output, sum);
  const RowsAhead& ahead = job.rows_ahead;
  if (ahead.body != nullptr && from_float<Bf16>(activate(job.result.activation, sum)).bits << 1 != 0) {
    prefetch_bulk_l2(ahead.body + static_cast<int64_t>(output) * ahead.row_bytes, ahead.row_bytes);
  }
}

/// `each` gets the jobs of one launch after another; `unit` elements are loaded at once.
template <typename Each>
void for_launches(Gpu& gpu, std::span<const FewRowsCall> calls, int unit, const Each& each) {
  for (size_t first = 0; first < calls.size(); first += kFewRowsJobs) {
    FewRowsJobs jobs{};
    jobs.rows = static_cast<int>(calls[0].x.dim(0));
    jobs.count = static_cast<int>(std::min<size_t>(kFewRowsJobs, calls.size() - first));
    jobs.ahead = gpu.reading_order().next(calls.subspan(first, static_cast<size_t>(jobs.count)));
    for (int i = 0; i < jobs.count; ++i) {
      const FewRowsCall& call = calls[first + static_cast<size_t>(i)];
      const GpuMatrix& m = *call.w;
      jobs.of[i] = {.w = weight_rows(m),
                    .x = call.x.data(),
                    .result = result_of(call),
                    .in = static_cast<int>(m.in),
                    .out = static_cast<int>(m.out),
                    .units = static_cast<int>(m.in) / unit,
                    .first_block = 0,
                    .splits = 1,
                    .constant = m.constant,
                    .rows_ahead = gpu.reading_order().rows_behind(call)};
    }
    each(jobs);
  }
}

}  // namespace rwkvx::cuda
