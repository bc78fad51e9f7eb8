#include <cstdint>

#include "ops/cuda/kv_parts.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int64_t kTokens = 512;  // of one block

/// Two channels of a token's key for each lane of a warp.
template <typename T>
__device__ __forceinline__ float2 key_of(const Kv& kv, int64_t head, int64_t token, int lane) {
  const StoredKey<T> key = stored_key<T>(kv, head, token);
  return stored2(key.row + 2 * lane, key.scale);
}

__device__ __forceinline__ float inverse_norm(float squares) {
  return squares > 0 ? 1.0f / sqrtf(squares) : 0.0f;
}

/// Block (tokens, head): Σ k / ‖k‖ over its tokens, sums [heads, gridDim.x, N].
template <typename T>
__global__ void __launch_bounds__(kThreads) direction_sums_kernel(Kv kv, int64_t candidates, float2* sums) {
  __shared__ float2 totals[kWarps][kHead / 2];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t head = blockIdx.y, begin = static_cast<int64_t>(blockIdx.x) * kTokens;
  float2 total = make_float2(0, 0);
  for (int64_t token = begin + warp; token < min(candidates, begin + kTokens); token += kWarps) {
    const float2 key = key_of<T>(kv, head, token, lane);
    const float inverse = inverse_norm(warp_sum(key.x * key.x + key.y * key.y));
    total.x = fmaf(key.x, inverse, total.x);
    total.y = fmaf(key.y, inverse, total.y);
  }
  totals[warp][lane] = total;
  __syncthreads();
  if (warp > 0) return;
  float2 sum = make_float2(0, 0);
  for (int w = 0; w < kWarps; ++w) {
    sum.x += totals[w][lane].x;
    sum.y += totals[w][lane].y;
  }
  sums[(head * gridDim.x + blockIdx.x) * (kHead / 2) + lane] = sum;
}

/// Block (tokens, head).
template <typename T>
__global__ void __launch_bounds__(kThreads)
    distinct_kernel(Kv kv, int64_t candidates, const float2* sums, float* scores) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t head = blockIdx.y, begin = static_cast<int64_t>(blockIdx.x) * kTokens;
  float2 sum = make_float2(0, 0);
  for (unsigned part = 0; part < gridDim.x; ++part) {
    const float2 one = sums[(head * gridDim.x + part) * (kHead / 2) + lane];
    sum.x += one.x;
    sum.y += one.y;
  }
  const float inverse_sum = inverse_norm(warp_sum(sum.x * sum.x + sum.y * sum.y));
  for (int64_t token = begin + warp; token < min(candidates, begin + kTokens); token += kWarps) {
    const float2 key = key_of<T>(kv, head, token, lane);
    const float inverse = inverse_norm(warp_sum(key.x * key.x + key.y * key.y));
    const float product = warp_sum(key.x * sum.x + key.y * sum.y);
    if (lane == 0) scores[head * candidates + token] = -product * inverse * inverse_sum;
  }
}

}  // namespace

void kv_distinct(Gpu& gpu, const KvDistinct& call) {
  const int64_t heads = call.scores.dim(0), candidates = call.scores.dim(1);
  if (heads == 0 || candidates == 0) return;
  const Arena::Scope scope(gpu.scratch());
  const unsigned parts = blocks_for(candidates, kTokens), all_heads = static_cast<unsigned>(heads);
  auto* sums = static_cast<float2*>(gpu.scratch().take(DType::f32, {heads, int64_t{parts}, kHead}).data());
  const Kv kv = on_gpu(gpu, call.kv);
  with_stored(call.kv.dtype, [&](auto stored) {
    using T = decltype(stored);
    launch(gpu, {{parts, all_heads}, kThreads}, direction_sums_kernel<T>, kv, candidates, sums);
    launch(gpu, {{parts, all_heads}, kThreads}, distinct_kernel<T>, kv, candidates,
           static_cast<const float2*>(sums), call.scores.as<float>());
  });
}

}  // namespace rwkvx::cuda
