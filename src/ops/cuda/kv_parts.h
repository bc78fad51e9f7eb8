#pragma once

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"

/// What kernels on rows of KV stores share.
namespace rwkvx::cuda {

struct Place {
  uint32_t chunk, slot;
};
/// Stores are shorter than 2³² tokens, and divisions of 64 bits slow.
__device__ __forceinline__ Place place_of(const Kv& kv, int64_t token) {
  const auto size = static_cast<uint32_t>(kv.chunk_size), t = static_cast<uint32_t>(token);
  return {t / size, t % size};
}

/// Two and four consecutive channels as stored; `scale` is used by int8_t only.
__device__ __forceinline__ float2 stored2(const float* p, float) {
  return *reinterpret_cast<const float2*>(p);
}
__device__ __forceinline__ float2 stored2(const Bf16* p, float) {
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(p);
  return make_float2(low_bf16(pair), high_bf16(pair));
}
__device__ __forceinline__ float2 stored2(const int8_t* p, float scale) {
  const uint32_t pair = *reinterpret_cast<const uint16_t*>(p);
  return make_float2(scale * static_cast<float>(static_cast<int8_t>(pair & 0xffu)),
                     scale * static_cast<float>(static_cast<int8_t>(pair >> 8)));
}
__device__ __forceinline__ float4 stored4(const float* p, float) { return load4(p); }
__device__ __forceinline__ float4 stored4(const Bf16* p, float) { return load4(p); }
__device__ __forceinline__ float4 stored4(const int8_t* p, float scale) {
  const uint32_t word = *reinterpret_cast<const uint32_t*>(p);
  const auto channel = [&](int byte) {
    return scale * static_cast<float>(static_cast<int8_t>(word >> (8 * byte) & 0xffu));
  };
  return make_float4(channel(0), channel(1), channel(2), channel(3));
}

/// A token's key of one head, and the scale of its channels.
template <typename T>
struct StoredKey {
  const T* row;
  float scale;
};
template <typename T>
__device__ __forceinline__ StoredKey<T> stored_key(const Kv& kv, int64_t head, int64_t token) {
  const Place place = place_of(kv, token);
  const KvPage page = kv.pages[place.chunk];
  const int64_t slot = head * kv.chunk_size + place.slot;
  return {static_cast<const T*>(page.keys) + slot * kHead, sizeof(T) == 1 ? page.key_scales[slot] : 1.0f};
}

/// Calls with a T{} of the store's element type.
template <typename Call>
void with_stored(DType dtype, const Call& call) {
  if (dtype == DType::f32) return call(float{});
  if (dtype == DType::bf16) return call(Bf16{});
  RWKVX_ASSERT(dtype == DType::i8);
  call(int8_t{});
}

}  // namespace rwkvx::cuda
