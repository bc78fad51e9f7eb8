#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "ops/cuda/kernel.h"
#include "ops/ops.h"

/// What the kernels of the WKV-7 recurrence share.
namespace rwkvx::cuda {

inline constexpr int kStateElements = kHead * kHead;
inline constexpr int kWkv7Rows = static_cast<int>(kWkv7Interval);  // between two kept states: also of a chunk

/// A sequence of a launch.
struct Wkv7Sequence {
  int64_t begin, rows;
  int64_t first_interval;  // of those kept
  float* state;            // [H, N, N]; in the backward its gradient, or null
};
inline constexpr int kWkv7Sequences = 32;
struct Wkv7Sequences {
  int count = 0;
  Wkv7Sequence all[kWkv7Sequences];
};

/// [R, C] each.
struct Wkv7Inputs {
  const float *r, *w, *k, *v, *a, *b;
};
inline Wkv7Inputs inputs_of(const Wkv7Call& call) {
  return {call.r.as<float>(), call.w.as<float>(), call.k.as<float>(),
          call.v.as<float>(), call.a.as<float>(), call.b.as<float>()};
}

/// Calls each(sequences) for groups of sequences that are `wanted` by their number of rows.
template <typename Wanted, typename Each>
void for_wkv7_groups(std::span<const int64_t> offsets, std::span<void* const> states, const Wanted& wanted,
                     const Each& each) {
  Wkv7Sequences group;
  int64_t interval = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t rows = offsets[s + 1] - offsets[s];
    if (wanted(rows)) {
      float* const state = states.empty() ? nullptr : static_cast<float*>(states[s]);
      group.all[group.count++] = {offsets[s], rows, interval, state};
      if (group.count == kWkv7Sequences) {
        each(group);
        group.count = 0;
      }
    }
    interval += (rows + kWkv7Interval - 1) / kWkv7Interval;
  }
  if (group.count > 0) each(group);
}

/// Sums of 4 values over groups of `kLanes` lanes (4 to 32): lane l of a group gets the sum of x[l % 4].
template <int kLanes>
__device__ __forceinline__ float sum_of_four(const float (&x)[4], int lane) {
  const bool odd = (lane & 1) != 0, upper = (lane & 2) != 0;
  const float keep0 = odd ? x[1] : x[0], give0 = odd ? x[0] : x[1];
  const float keep1 = odd ? x[3] : x[2], give1 = odd ? x[2] : x[3];
  const float low = keep0 + __shfl_xor_sync(kAllLanes, give0, 1);
  const float high = keep1 + __shfl_xor_sync(kAllLanes, give1, 1);
  float sum = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, 2);
#pragma unroll
  for (int lanes = 4; lanes < kLanes; lanes *= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  return sum;
}

}  // namespace rwkvx::cuda
