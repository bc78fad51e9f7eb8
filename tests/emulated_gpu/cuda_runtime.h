#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>

/// As much of CUDA's language and runtime as the kernels use, on the host: the tests of the cuda backend run
/// its kernels, unchanged, where there is no GPU. One thread of the host runs a block's threads as fibers and
/// switches at barriers and at exchanges within a warp; blocks run one after another. Slow, and blind to
/// timing, but a wrong index or a missing barrier shows (scripts/sanitize checks every access).

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static
#define __grid_constant__

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct uint3 {
  unsigned x, y, z;
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __frcp_rn(float x) { return 1 / x; }
template <typename To, typename From>
To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &x, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return bits_as<float>(x); }
inline int __float_as_int(float x) { return bits_as<int>(x); }
inline float __int_as_float(int x) { return bits_as<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
template <typename T>
T __ldg(const T* p) {
  return *p;
}

namespace rwkvx::emulated {

extern unsigned lane;
/// Waits until all threads of the block that have not returned are here.
void block_barrier();
/// Waits for the warp; the result points at what its 32 lanes gave, until the next exchange but one.
inline constexpr size_t kExchangeBytes = 64;
std::byte* begin_exchange();
void warp_barrier();
template <typename T>
const std::byte* exchange(const T& mine) {
  static_assert(sizeof mine <= kExchangeBytes);
  std::byte* slots = begin_exchange();
  memcpy(slots + lane * kExchangeBytes, &mine, sizeof mine);
  warp_barrier();
  return slots;
}
unsigned active_lanes();
std::byte* dynamic_shared_memory();
/// Called before (true) and behind every kernel; or empty.
extern std::function<void(bool)> around_kernels;
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
void require_full_mask(unsigned mask);

template <typename T>
T from_lane(T mine, unsigned source) {
  const std::byte* all = exchange(mine);
  T value;
  memcpy(&value, all + (source % 32) * kExchangeBytes, sizeof value);
  return value;
}

}  // namespace rwkvx::emulated

inline void __syncthreads() { rwkvx::emulated::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  rwkvx::emulated::require_full_mask(mask);
  rwkvx::emulated::warp_barrier();
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  rwkvx::emulated::require_full_mask(mask);
  const unsigned lane = rwkvx::emulated::lane, w = static_cast<unsigned>(width);
  return rwkvx::emulated::from_lane(value, lane / w * w + static_cast<unsigned>(source) % w);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int = 32) {
  rwkvx::emulated::require_full_mask(mask);
  return rwkvx::emulated::from_lane(value, rwkvx::emulated::lane ^ static_cast<unsigned>(lanes));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  rwkvx::emulated::require_full_mask(mask);
  const unsigned lane = rwkvx::emulated::lane, w = static_cast<unsigned>(width);
  return rwkvx::emulated::from_lane(value, lane % w + lanes < w ? lane + lanes : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32) {
  rwkvx::emulated::require_full_mask(mask);
  const unsigned lane = rwkvx::emulated::lane, w = static_cast<unsigned>(width);
  return rwkvx::emulated::from_lane(value, lane % w >= lanes ? lane - lanes : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  rwkvx::emulated::require_full_mask(mask);
  const char mine = predicate != 0;
  const std::byte* all = rwkvx::emulated::exchange(mine);
  unsigned bits = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((rwkvx::emulated::active_lanes() >> i & 1u) != 0 &&
        all[i * rwkvx::emulated::kExchangeBytes] != std::byte{0}) {
      bits |= 1u << i;
    }
  }
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <typename T, typename U>
T atomicAdd(T* at, U value) {
  const T before = *at;
  *at = static_cast<T>(before + static_cast<T>(value));
  return before;
}
template <typename T, typename U>
T atomicMax(T* at, U value) {
  const T before = *at;
  if (before < static_cast<T>(value)) *at = static_cast<T>(value);
  return before;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize,
  cudaFuncAttributePreferredSharedMemoryCarveout
};
enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};
struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int multiProcessorCount, major, minor;
  size_t sharedMemPerBlockOptin;
  int l2CacheSize;
};
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count);
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMalloc(void** block, size_t bytes);
cudaError_t cudaFree(void* block);
cudaError_t cudaMallocHost(void** block, size_t bytes);
cudaError_t cudaFreeHost(void* block);
inline cudaError_t cudaMallocAsync(void** block, size_t bytes, cudaStream_t) {
  return cudaMalloc(block, bytes);
}
inline cudaError_t cudaFreeAsync(void* block, cudaStream_t) { return cudaFree(block); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer);
using cudaMemPool_t = void*;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int) { return cudaSuccess; }
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = nullptr;
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
struct cudaFuncAttributes {
  int ptxVersion;
};
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), A... arguments) {
  rwkvx::emulated::run_grid(config->gridDim, config->blockDim, config->dynamicSmemBytes,
                            [&] { kernel(arguments...); });
  return cudaSuccess;
}
