#pragma once

#include "ops/cuda/kernel.h"

/// What the kernels around the WKV-7 recurrence share: two channels for each lane.
namespace rwkvx::cuda {

inline constexpr float kDecay = 0.6065306597126334f;  // e^(−1/2)

__device__ __forceinline__ float2 load2(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void store2(float* p, float2 v) { *reinterpret_cast<float2*>(p) = v; }
__device__ __forceinline__ void store2(Bf16* p, float2 v) {
  *reinterpret_cast<uint32_t*>(p) = pack_bf16(v.x, v.y);
}

}  // namespace rwkvx::cuda
