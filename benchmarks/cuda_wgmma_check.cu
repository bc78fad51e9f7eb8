// Whether this GPU's wgmma takes matrices in shared memory as src/ops/cuda/native/instructions.h describes
// them: one product of each kind against a plain one, for several values of the offsets that should not
// matter.
//   nvcc -std=c++20 -O3 -DRWKVX_SM90A -gencode arch=compute_90a,code=sm_90a -I src -I src/ops/cuda/native
//     benchmarks/cuda_wgmma_check.cu -o cuda_wgmma_check
#include <cstdio>
#include <cstring>
#include <vector>

#include "ops/cuda/kernel.h"

namespace rwkvx::cuda {
namespace {

constexpr int kSize = 64, kThreads = 128;

/// d [64 × 64] = a [64 × 64] · b: of b's 64 rows of 64 in memory, each is for one n, or with kRowsOfK one k.
template <bool kRowsOfK>
__global__ void __launch_bounds__(kThreads)
    product_kernel(const Bf16* a, const Bf16* b, float* d, uint32_t leading, uint32_t stride) {
  unsigned char* const matrix = aligned_up(dynamic_shared<unsigned char>(), 1024);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned i = threadIdx.x; i < kSize * 8; i += kThreads) {
    const unsigned row = i / 8, piece = i % 8;
    copy_async_16(matrix + row * 128 + (piece ^ row % 8) * 16, b + row * kSize + piece * 8);
  }
  copy_async_commit();
  copy_async_wait<0>();
  fence_shared_for_wgmma();
  __syncthreads();
  float sums[8][4] = {};
  uint32_t from[4][4];
#pragma unroll
  for (unsigned k = 0; k < 4; ++k) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = 16 * warp + lane / 4 + i % 2 * 8, column = 16 * k + 2 * (lane % 4) + i / 2 * 8;
      from[k][i] = *reinterpret_cast<const uint32_t*>(a + row * kSize + column);
    }
  }
  wgmma_fence(sums, from);
  const SharedMatrix all = shared_matrix(matrix, leading, stride);
#pragma unroll
  for (unsigned k = 0; k < 4; ++k) {
    wgmma_bf16<kRowsOfK>(sums, from[k], advance(all, (kRowsOfK ? 2048 : 32) * k), k > 0);
  }
  wgmma_commit();
  wgmma_wait<0>(sums);
#pragma unroll
  for (unsigned j = 0; j < 8; ++j) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      d[(16 * warp + lane / 4 + i / 2 * 8) * kSize + 8 * j + 2 * (lane % 4) + i % 2] = sums[j][i];
    }
  }
}

struct Memory {
  Bf16 a[kSize * kSize], b[kSize * kSize];
  float d[kSize * kSize];
};

bool check(bool rows_of_k, uint32_t leading, uint32_t stride,
           void (*kernel)(const Bf16*, const Bf16*, float*, uint32_t, uint32_t)) {
  static Memory memory;
  // Small integers: every sum is exact.
  for (int i = 0; i < kSize * kSize; ++i) {
    const auto whole = [](int x) { return static_cast<float>(x % 15 - 7); };
    memory.a[i] = {static_cast<uint16_t>(__builtin_bit_cast(uint32_t, whole(i * 7 + i / 64 * 3)) >> 16)};
    memory.b[i] = {static_cast<uint16_t>(__builtin_bit_cast(uint32_t, whole(i * 11 + i / 64 * 5)) >> 16)};
    memory.d[i] = -1e9f;
  }
  Memory* on_gpu = nullptr;
  cudaStream_t stream = nullptr;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSize * 128 + 1024;
  const auto host_float = [](Bf16 x) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16);
  };
  if (cudaMalloc(reinterpret_cast<void**>(&on_gpu), sizeof memory) != cudaSuccess) return false;
  cudaMemcpyAsync(on_gpu, &memory, sizeof memory, cudaMemcpyDefault, stream);
  cudaLaunchKernelEx(&config, kernel, static_cast<const Bf16*>(on_gpu->a),
                     static_cast<const Bf16*>(on_gpu->b), static_cast<float*>(on_gpu->d), leading, stride);
  cudaMemcpyAsync(&memory, on_gpu, sizeof memory, cudaMemcpyDefault, stream);
  const cudaError_t result = cudaStreamSynchronize(stream);
  cudaFree(on_gpu);
  int wrong = 0;
  for (int m = 0; m < kSize; ++m) {
    for (int n = 0; n < kSize; ++n) {
      float sum = 0;
      for (int k = 0; k < kSize; ++k) {
        sum += host_float(memory.a[m * kSize + k]) *
               host_float(memory.b[rows_of_k ? k * kSize + n : n * kSize + k]);
      }
      if (!(sum == memory.d[m * kSize + n])) ++wrong;
    }
  }
  std::printf("rows of %s, leading offset %4u, stride offset %4u: %s, %d of %d wrong\n",
              rows_of_k ? "k" : "n", leading, stride, cudaGetErrorString(result), wrong, kSize * kSize);
  return result == cudaSuccess && wrong == 0;
}

}  // namespace
}  // namespace rwkvx::cuda

int main() {
  using namespace rwkvx::cuda;
  bool good = true;
  for (const uint32_t leading : {16u, 0u, 1024u}) {
    const bool right = check(false, leading, 1024, product_kernel<false>);
    if (leading == 16) good = good && right;  // as rows_of_n() has it
  }
  for (const uint32_t leading : {1024u, 16u, 0u, 8192u}) {
    const bool right = check(true, leading, 1024, product_kernel<true>);
    if (leading == 1024) good = good && right;  // as rows_of_k() has it
  }
  std::printf("%s\n", good ? "as expected" : "NOT as expected");
  return good ? 0 : 1;
}
