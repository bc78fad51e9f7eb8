#pragma once

#include "ops/cuda/kernel.h"

/// Products of float32 tiles [64, N] in shared memory, by blocks of 256 threads: thread 16·y + x.
namespace rwkvx::cuda {

inline constexpr int kTileRows = 64;
inline constexpr int kTileStride =
    kHead + 4;  // of rows: aligned, and 8 successive ones lie in different banks
inline constexpr int kTileFloats = kTileRows * kTileStride;
inline constexpr int kTileThreads = 256;

/// row_of(i) gives the address of row i, or null: zeros.
template <typename RowOf>
__device__ __forceinline__ void load_tile(float* tile, const RowOf& row_of) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int pass = 0; pass < kTileRows * kHead / 4 / kTileThreads; ++pass) {
    const int row = pass * (kTileThreads * 4 / kHead) + thread / (kHead / 4),
              channel = thread % (kHead / 4) * 4;
    const auto* from = row_of(row);
    store4(tile + row * kTileStride + channel,
           from != nullptr ? load4(from + channel) : make_float4(0, 0, 0, 0));
  }
}

/// out[i][j] = a[4y + i] · b[x + 16j], summed in order of channels.
__device__ __forceinline__ void multiply_rows(float (&out)[4][4], const float* a, const float* b) {
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) out[i][j] = 0;
  }
#pragma unroll 2
  for (int n = 0; n < kHead; n += 4) {
    float4 left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = load4(a + (4 * y + i) * kTileStride + n);
      right[i] = load4(b + (x + 16 * i) * kTileStride + n);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        out[i][j] = fmaf(left[i].x, right[j].x, out[i][j]);
        out[i][j] = fmaf(left[i].y, right[j].y, out[i][j]);
        out[i][j] = fmaf(left[i].z, right[j].z, out[i][j]);
        out[i][j] = fmaf(left[i].w, right[j].w, out[i][j]);
      }
    }
  }
}

/// values[i][j] at row 4y + i, column x + 16j.
__device__ __forceinline__ void store_tile(float* tile, const float (&values)[4][4]) {
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) tile[(4 * y + i) * kTileStride + x + 16 * j] = values[i][j];
  }
}

/// sums[i][j] += Σₖ a[4y + i][k] · b[k][4x + j] over 64 k, in order.
__device__ __forceinline__ void add_product(float (&sums)[4][4], const float* a, const float* b) {
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
#pragma unroll 2
  for (int k = 0; k < kTileRows; k += 4) {
    float4 left[4], right[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      left[i] = load4(a + (4 * y + i) * kTileStride + k);
      right[i] = load4(b + (k + i) * kTileStride + 4 * x);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float factors[4] = {left[i].x, left[i].y, left[i].z, left[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[i][0] = fmaf(factors[j], right[j].x, sums[i][0]);
        sums[i][1] = fmaf(factors[j], right[j].y, sums[i][1]);
        sums[i][2] = fmaf(factors[j], right[j].z, sums[i][2]);
        sums[i][3] = fmaf(factors[j], right[j].w, sums[i][3]);
      }
    }
  }
}

}  // namespace rwkvx::cuda
