#include "base/assert.h"
#include "ops/cuda/attention_backward_parts.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/types.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanesOfHead = 8;  // each takes 8 channels

__device__ __forceinline__ float dot4(float4 a, float4 b) {
  return a.x * b.x + a.y * b.y + (a.z * b.z + a.w * b.w);
}
__device__ __forceinline__ uint4 round8(float4 a, float4 b) {
  return {pack_bf16(a.x, a.y), pack_bf16(a.z, a.w), pack_bf16(b.x, b.y), pack_bf16(b.z, b.w)};
}
__device__ __forceinline__ float4 widen4(uint32_t a, uint32_t b) {
  return make_float4(low_bf16(a), high_bf16(a), low_bf16(b), high_bf16(b));
}

/// statistics [H, R] of every query: lse · lse_scale and D = dy · y. With q16, rounded copies of q and dy,
/// [H, R, N], and D is that of the rounded dy, so that the errors of both parts of ds cancel.
template <typename Y>
__global__ void __launch_bounds__(kThreads)
    prepare_queries(const float* q, const float* dy, const Y* y, const float* lse, float lse_scale,
                    int64_t rows, int heads, float2* statistics, Bf16* q16, Bf16* dy16) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int part = static_cast<int>(threadIdx.x) % kLanesOfHead;
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * (kThreads / kLanesOfHead) + threadIdx.x / kLanesOfHead;
  const bool valid = item < rows * heads;
  const int64_t head = item % heads, row = item / heads, from = item * kHead + part * 8;
  float delta = 0;
  if (valid) {
    float4 first = load4(dy + from), second = load4(dy + from + 4);
    if (q16 != nullptr) {
      const int64_t to = (head * rows + row) * kHead + part * 8;
      const uint4 rounded = round8(first, second);
      *reinterpret_cast<uint4*>(dy16 + to) = rounded;
      *reinterpret_cast<uint4*>(q16 + to) = round8(load4(q + from), load4(q + from + 4));
      first = widen4(rounded.x, rounded.y);
      second = widen4(rounded.z, rounded.w);
    }
    delta = dot4(first, load4(y + from)) + dot4(second, load4(y + from + 4));
  }
#pragma unroll
  for (int lanes = kLanesOfHead / 2; lanes > 0; lanes /= 2) delta += __shfl_xor_sync(kAllLanes, delta, lanes);
  if (valid && part == 0) statistics[head * rows + row] = make_float2(lse[item] * lse_scale, delta);
}

}  // namespace

void chunk_attention_backward(Gpu& gpu, const ChunkAttention& forward,
                              const ChunkAttentionGradients& gradients, Precision precision) {
  const Arena::Scope scope(gpu.scratch());
  AttentionBackward backward{};
  backward.table = upload_chunks(gpu, forward);
  const ChunkTable& table = backward.table;
  const bool bf16_pages = forward.kv[0].dtype == DType::bf16;
  RWKVX_ASSERT(bf16_pages || forward.kv[0].dtype == DType::f32);
  const bool bf16 = precision == Precision::bf16 && bf16_pages && table.chunk_size % 64 == 0;
  backward.dq = gradients.dq.as<float>();
  backward.dk = gradients.dk.as<float>();
  backward.dv = gradients.dv.as<float>();
  const float *q = forward.q.as<float>(), *dy = gradients.dy.as<float>();

  const View statistics = gpu.scratch().take(DType::f32, {table.heads, table.rows, 2});
  backward.statistics = reinterpret_cast<const float2*>(statistics.as<float>());
  Bf16 *q16 = nullptr, *dy16 = nullptr;
  if (bf16) {
    q16 = pointer<Bf16>(gpu.scratch().take(DType::bf16, {table.heads, table.rows, kHead}));
    dy16 = pointer<Bf16>(gpu.scratch().take(DType::bf16, {table.heads, table.rows, kHead}));
  }
  with_real_or_bf16(ConstView(forward.y), [&](const auto* y) {
    using Y = std::remove_const_t<std::remove_pointer_t<decltype(y)>>;
    launch(gpu, {blocks_for(table.rows * table.heads, kThreads / kLanesOfHead), kThreads}, prepare_queries<Y>,
           q, dy, y, forward.lse.as<float>(), bf16 ? kLog2E : 1.0f, table.rows, table.heads,
           reinterpret_cast<float2*>(statistics.as<float>()), q16, dy16);
  });
  backward.lists = invert_selection(gpu, table, forward.chosen, bf16 ? kTileBf16 : kTileF32);
  if (bf16) {
    attention_backward_bf16(gpu, backward, q16, dy16);
  } else {
    attention_backward_f32(gpu, backward, q, dy, bf16_pages);
  }
}

}  // namespace rwkvx::cuda
