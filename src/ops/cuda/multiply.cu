#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/types.h"

/// Products of any size and alignment, for what the library does not take: not fast.
namespace rwkvx::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16;

/// 16 × 16 threads with 4 × 4 elements each.
template <typename T, typename D>
__global__ void __launch_bounds__(256)
    multiply_kernel(const T* a, bool a_transposed, const T* b, bool b_transposed, D* d, int64_t m, int64_t n,
                    int64_t k, bool add) {
  __shared__ float as[kDepth][kTile + 4], bs[kDepth][kTile + 4];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t across = (n + kTile - 1) / kTile;
  const int64_t row0 = blockIdx.x / across * kTile, column0 = blockIdx.x % across * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    for (int i = static_cast<int>(threadIdx.x); i < kTile * kDepth; i += 256) {
      // Consecutive threads read what is consecutive in memory.
      const int ai = a_transposed ? i % kTile : i / kDepth, ak = a_transposed ? i / kTile : i % kDepth;
      const int64_t row = row0 + ai, ka = k0 + ak;
      as[ak][ai] = row < m && ka < k ? to_float(a[a_transposed ? ka * m + row : row * k + ka]) : 0.0f;
      const int bi = b_transposed ? i / kDepth : i % kTile, bk = b_transposed ? i % kDepth : i / kTile;
      const int64_t column = column0 + bi, kb = k0 + bk;
      bs[bk][bi] =
          column < n && kb < k ? to_float(b[b_transposed ? column * k + kb : kb * n + column]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int kk = 0; kk < kDepth; ++kk) {
      const float4 x = load4(&as[kk][4 * ty]), y = load4(&bs[kk][4 * tx]);
      const float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += xs[i] * ys[j];
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    const int64_t row = row0 + 4 * ty + i;
    for (int j = 0; j < 4; ++j) {
      const int64_t column = column0 + 4 * tx + j;
      if (row >= m || column >= n) continue;
      D* to = d + row * n + column;
      *to = from_float<D>(add ? to_float(*to) + sums[i][j] : sums[i][j]);
    }
  }
}

}  // namespace

void multiply(Gpu& gpu, const Product& p) {
  if (p.m == 0 || p.n == 0) return;
  if (multiply_by_library(gpu, p)) return;
  const auto run = [&](auto* a, auto* d) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(a)>>;
    using D = std::remove_pointer_t<decltype(d)>;
    launch(gpu, {blocks_for(p.m, kTile) * blocks_for(p.n, kTile), 256}, multiply_kernel<T, D>, a,
           p.a_transposed, static_cast<const T*>(p.b), p.b_transposed, d, p.m, p.n, p.k, p.add);
  };
  const auto with_type = [&](auto* d) {
    if (p.type == DType::bf16) return run(static_cast<const Bf16*>(p.a), d);
    run(static_cast<const float*>(p.a), d);
  };
  if (p.d_type == DType::bf16) return with_type(static_cast<Bf16*>(p.d));
  with_type(static_cast<float*>(p.d));
}

}  // namespace rwkvx::cuda
