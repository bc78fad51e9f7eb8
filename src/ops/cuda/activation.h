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

/// 8 elements, aligned to 16 bytes.
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
  const float4 a = load4(p), b = load4(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}
__device__ __forceinline__ void load8(const Bf16* p, float (&x)[8]) {
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  x[0] = low_bf16(v.x), x[1] = high_bf16(v.x), x[2] = low_bf16(v.y), x[3] = high_bf16(v.y);
  x[4] = low_bf16(v.z), x[5] = high_bf16(v.z), x[6] = low_bf16(v.w), x[7] = high_bf16(v.w);
}

}  // namespace rwkvx::cuda
