#pragma once

#include <algorithm>
#include <span>

#include "ops/cuda/activation.h"
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
/// What a sum is added to, for those who ask for it early.
__device__ __forceinline__ float before_result(const Result& to, int64_t at) {
  return to.add && !to.y_bf16 ? static_cast<const float*>(to.y)[at] : 0.0f;
}
__device__ __forceinline__ void store_result(const Result& to, int64_t at, float sum, float before) {
  if (to.y_bf16) {
    static_cast<Bf16*>(to.y)[at] = from_float<Bf16>(activate(to.activation, sum));
  } else {
    static_cast<float*>(to.y)[at] = to.add ? before + sum : activate(to.activation, sum);
  }
}
__device__ __forceinline__ void store_result(const Result& to, int64_t at, float sum) {
  store_result(to, at, sum, before_result(to, at));
}

struct FewRowsJob {
  WeightRows w;
  const void* x;  // [R, in]
  Result result;
  int in, out, units;
  int first_block;
  int splits;  // warps that share a tile
  bool constant;
};
struct FewRowsJobs {
  int count, rows, blocks;
  FewRowsJob of[kFewRowsJobs];

  __device__ __forceinline__ const FewRowsJob& of_block(int block) const {
    int which = 0;
    while (which + 1 < count && block >= of[which + 1].first_block) ++which;
    return of[which];
  }
};

__device__ __forceinline__ void store_result(const FewRowsJob& job, int row, int output, float sum) {
  store_result(job.result, static_cast<int64_t>(row) * job.out + output, sum);
}

/// `each` gets the jobs of one launch after another; `unit` elements are loaded at once.
template <typename Each>
void for_launches(std::span<const FewRowsCall> calls, int unit, const Each& each) {
  for (size_t first = 0; first < calls.size(); first += kFewRowsJobs) {
    FewRowsJobs jobs{};
    jobs.rows = static_cast<int>(calls[0].x.dim(0));
    jobs.count = static_cast<int>(std::min<size_t>(kFewRowsJobs, calls.size() - first));
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
                    .constant = m.constant};
    }
    each(jobs);
  }
}

}  // namespace rwkvx::cuda
