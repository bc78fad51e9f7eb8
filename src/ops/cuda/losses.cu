#include <algorithm>
#include <cstdint>

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/training_parts.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 1024, kLossThreads = 256;
constexpr int kAtOnce = 4;                   // loads of a thread
constexpr float kLowest = -3.402823466e38f;  // finite, so that differences from it are no NaN

/// Of some logits: the highest, the first index where it is, Σ exp(logit − highest).
struct Softmax {
  float highest;
  int top;
  float sum;
};

__device__ __forceinline__ Softmax merged(const Softmax& a, const Softmax& b) {
  const bool second = b.highest > a.highest || (b.highest == a.highest && b.top < a.top);
  const float highest = second ? b.highest : a.highest;
  return {highest, second ? b.top : a.top,
          a.sum * expf(a.highest - highest) + b.sum * expf(b.highest - highest)};
}

__device__ __forceinline__ Softmax from_lanes(const Softmax& a, int lanes) {
  return {__shfl_xor_sync(kAllLanes, a.highest, lanes), __shfl_xor_sync(kAllLanes, a.top, lanes),
          __shfl_xor_sync(kAllLanes, a.sum, lanes)};
}

/// All threads get the whole block's.
__device__ __forceinline__ Softmax block_softmax(Softmax mine, Softmax* scratch) {
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) mine = merged(mine, from_lanes(mine, lanes));
  if (lane == 0) scratch[threadIdx.x / 32] = mine;
  __syncthreads();
  Softmax all{kLowest, INT32_MAX, 0};
  if (lane < warps) all = scratch[lane];
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) all = merged(all, from_lanes(all, lanes));
  return all;
}

/// One or four logits.
__device__ __forceinline__ float highest_of(float z) { return z; }
__device__ __forceinline__ float highest_of(float4 z) { return fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w)); }
__device__ __forceinline__ int first_of(float, float) { return 0; }
__device__ __forceinline__ int first_of(float4 z, float x) {
  return z.x == x ? 0 : z.y == x ? 1 : z.z == x ? 2 : 3;
}
__device__ __forceinline__ float exponentials(float z, float highest) { return expf(z - highest); }
__device__ __forceinline__ float exponentials(float4 z, float highest) {
  return (expf(z.x - highest) + expf(z.y - highest)) + (expf(z.z - highest) + expf(z.w - highest));
}
template <typename Unit>
__device__ __forceinline__ Unit all_of(float x);
template <>
__device__ __forceinline__ float all_of<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ float4 all_of<float4>(float x) {
  return make_float4(x, x, x, x);
}
__device__ __forceinline__ float probability(float z, float highest, float factor) {
  return factor * expf(z - highest);
}
__device__ __forceinline__ float4 probability(float4 z, float highest, float factor) {
  return make_float4(probability(z.x, highest, factor), probability(z.y, highest, factor),
                     probability(z.z, highest, factor), probability(z.w, highest, factor));
}

struct Rows {
  const float* logits;
  const int32_t* targets;
  const float* weights;            // or null
  float *losses, *hits, *dlogits;  // the last two may be null
  float scale, l2wrap;
  int vocabulary;
  int kept;  // units of a row that stay in shared memory between the passes
};

/// A block for each row. `Unit`: float4, or float where rows are not aligned.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const __grid_constant__ Rows rows) {
  constexpr int kWidth = sizeof(Unit) / sizeof(float);
  __shared__ Softmax scratch[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const int units = rows.vocabulary / kWidth, stride = static_cast<int>(blockDim.x);
  const float* logits = rows.logits + row * rows.vocabulary;
  const Unit* from = reinterpret_cast<const Unit*>(logits);
  float* dlogits = rows.dlogits == nullptr ? nullptr : rows.dlogits + row * rows.vocabulary;
  Unit* to = reinterpret_cast<Unit*>(dlogits);
  Unit* kept = dynamic_shared<Unit>();
  const int target = rows.targets[row];
  if (target < 0) {
    if (threadIdx.x == 0) {
      rows.losses[row] = 0;
      if (rows.hits != nullptr) rows.hits[row] = 0;
    }
    if (to == nullptr) return;
    for (int i = static_cast<int>(threadIdx.x); i < units; i += stride) to[i] = all_of<Unit>(0.0f);
    return;
  }
  const float wanted = logits[target];
  Softmax softmax{kLowest, INT32_MAX, 0};
  for (int start = static_cast<int>(threadIdx.x); start < units; start += kAtOnce * stride) {
    Unit z[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = start + i * stride;
      z[i] = at < units ? from[at] : all_of<Unit>(-INFINITY);
    }
    float most = highest_of(z[0]);
#pragma unroll
    for (int i = 1; i < kAtOnce; ++i) most = fmaxf(most, highest_of(z[i]));
    if (most > softmax.highest) {
      softmax.sum *= expf(softmax.highest - most);
      softmax.highest = most;
#pragma unroll
      for (int i = kAtOnce - 1; i >= 0; --i) {
        if (highest_of(z[i]) == most) softmax.top = (start + i * stride) * kWidth + first_of(z[i], most);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = start + i * stride;
      if (at < rows.kept) kept[at] = z[i];
      softmax.sum += exponentials(z[i], softmax.highest);
    }
  }
  softmax = block_softmax(softmax, scratch);
  if (threadIdx.x == 0) {
    rows.losses[row] = logf(softmax.sum) + (softmax.highest - wanted);
    if (rows.hits != nullptr) rows.hits[row] = wanted == softmax.highest ? 1.0f : 0.0f;
  }
  if (to == nullptr) return;
  const float scale = rows.scale * (rows.weights == nullptr ? 1.0f : rows.weights[row]);
  const float factor = scale / softmax.sum;
  // A thread's kept units are those that it stored.
  for (int start = static_cast<int>(threadIdx.x); start < units; start += kAtOnce * stride) {
    Unit z[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = start + i * stride;
      if (at < units) z[i] = at < rows.kept ? kept[at] : from[at];
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = start + i * stride;
      if (at < units) to[at] = probability(z[i], softmax.highest, factor);
    }
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  // Two elements have more than their probability.
  const float wrap = rows.scale * rows.l2wrap * softmax.highest;
  const float loss = scale * (expf(wanted - softmax.highest) / softmax.sum - 1.0f);
  const int top = softmax.top;
  dlogits[target] = loss + (top == target ? wrap : 0.0f);
  if (top != target && top < rows.vocabulary) dlogits[top] = factor + wrap;
}

/// That a block of this GPU may have, with room for the static.
int64_t shared_bytes(const Gpu& gpu) {
  const int capability = gpu.capability();
  if (capability == 90 || capability == 100 || capability == 103) return 224 * 1024;
  return (capability == 80 || capability == 87 ? 160 : 96) * 1024;
}

}  // namespace

void cross_entropy(Gpu& gpu, const CrossEntropy& call) {
  const int64_t count = call.logits.dim(0), vocabulary = call.logits.dim(1);
  if (count == 0) return;
  RWKVX_ASSERT(vocabulary <= INT32_MAX / 2);
  const Arena::Scope scope(gpu.scratch());
  Rows rows{};
  rows.logits = call.logits.as<float>();
  rows.targets = scratch_copy(gpu, call.targets);
  rows.weights = scratch_copy(gpu, call.weights);
  rows.losses = call.losses.as<float>();
  rows.hits = static_cast<float*>(call.hits.data());
  rows.dlogits = static_cast<float*>(call.dlogits.data());
  rows.scale = call.scale;
  rows.l2wrap = call.l2wrap;
  rows.vocabulary = static_cast<int>(vocabulary);
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const bool vectors = vocabulary % 4 == 0 && aligned(rows.logits) && aligned(rows.dlogits);
  const int64_t width = vectors ? 4 : 1, units = vocabulary / width;
  // Losses alone read a row once. With the gradient it is read again: most of it from shared memory, the rest
  // from the second cache, which holds a row for each multiprocessor.
  const bool gradient = rows.dlogits != nullptr;
  const int64_t most_threads = gradient ? kThreads : kLossThreads;
  const int64_t threads = std::min(most_threads, (units + 127) / 128 * 32 + 32);
  if (gradient) rows.kept = static_cast<int>(std::min(units, shared_bytes(gpu) / (width * 4)));
  const Grid grid{static_cast<unsigned>(count), static_cast<unsigned>(threads),
                  static_cast<size_t>(rows.kept * width * 4)};
  if (vectors) {
    launch(gpu, grid, cross_entropy_kernel<float4>, rows);
  } else {
    launch(gpu, grid, cross_entropy_kernel<float>, rows);
  }
}

}  // namespace rwkvx::cuda
