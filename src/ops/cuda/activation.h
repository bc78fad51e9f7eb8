#pragma once

#include "ops/cuda/kernel.h"
#include "ops/ops.h"

namespace rwkvx::cuda {

__device__ __forceinline__ float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::tanh:
      return tanhf(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::relu_squared:
      return x > 0.0f ? x * x : (x <= 0.0f ? 0.0f : x);  // NaN stays
    default:
      return x;
  }
}

/// The 8 numbers of 16 bits in four words.
__device__ __forceinline__ void unpack8(const uint4& v, Bf16, float (&x)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = low_bf16(words[i]);
    x[2 * i + 1] = high_bf16(words[i]);
  }
}
__device__ __forceinline__ void unpack8(const uint4& v, Fp16, float (&x)[8]) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = half_to_float(static_cast<uint16_t>(words[i]));
    x[2 * i + 1] = half_to_float(static_cast<uint16_t>(words[i] >> 16));
  }
}

/// 8 elements, aligned to 16 bytes.
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
  const float4 a = load4(p), b = load4(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void load8(const Bf16* p, float (&x)[8]) {
  unpack8(*reinterpret_cast<const uint4*>(p), Bf16(), x);
}

}  // namespace rwkvx::cuda
