#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "instructions.h"

/// What a kernel that stays on the GPU needs beyond instructions.h: barriers in shared memory that count copies,
/// copies by the memory engine, barriers of some warps and of the whole grid. tests/emulated_gpu has the same
/// functions for the host. Hopper and newer: on older GPUs they stop the kernel, which is not started there.
namespace rwkvx::cuda {

/// Of a wait that never ends (a defect): better an error than a GPU that hangs.
__device__ __forceinline__ void count_wait(uint32_t& waits) {
  if (++waits > 1u << 27) __trap();
}

/// A barrier in shared memory: a phase ends when `count` arrivals and all bytes expected are there. Waiting
/// names the parity of the phase: 0 for the first.
struct SharedBarrier {
  uint64_t bits;
};
__device__ __forceinline__ void init_barrier(SharedBarrier* barrier, uint32_t count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
#endif
}
/// After init_barrier(), before others use the barriers; a block barrier is needed too.
__device__ __forceinline__ void fence_barriers() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void arrive(SharedBarrier* barrier, uint32_t count = 1) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(count)
               : "memory");
#endif
}
/// Arrives once, and has the phase wait for so many bytes of copies.
__device__ __forceinline__ void arrive_expecting(SharedBarrier* barrier, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
#endif
}
__device__ __forceinline__ void wait(SharedBarrier* barrier, uint32_t parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0, waits = 0;
  while (true) {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
    if (done != 0) return;
    count_wait(waits);
  }
#endif
}
/// From global to shared memory by the memory engine; addresses and bytes are multiples of 16. What was copied
/// is not kept in the second cache.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          SharedBarrier* barrier) {
#if __CUDA_ARCH__ >= 900
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
      : "memory");
#endif
}

/// A number and a tag in one word, which other blocks see both or neither of: who finds the tag that it waits for
/// has the number, with no barrier between.
__device__ __forceinline__ void store_tagged(uint64_t* to, uint32_t value, uint32_t tag) {
  const uint64_t word = static_cast<uint64_t>(tag) << 32 | value;
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory");
}
__device__ __forceinline__ uint32_t load_tagged(const uint64_t* from, uint32_t tag) {
  uint64_t word = 0;
  uint32_t waits = 0;
  while (true) {
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(from) : "memory");
    if (static_cast<uint32_t>(word >> 32) == tag) return static_cast<uint32_t>(word);
    __nanosleep(32);
    count_wait(waits);
  }
}
/// Four neighbours at once, if all have the tag.
__device__ __forceinline__ bool try_load_tagged(uint4& values, const uint64_t* from, uint32_t tag) {
  uint64_t a, b, c, d;
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];" : "=l"(a), "=l"(b) : "l"(from) : "memory");
  asm volatile("ld.relaxed.gpu.global.v2.u64 {%0,%1}, [%2];" : "=l"(c), "=l"(d) : "l"(from + 2) : "memory");
  values = make_uint4(static_cast<uint32_t>(a), static_cast<uint32_t>(b), static_cast<uint32_t>(c),
                      static_cast<uint32_t>(d));
  const auto right = [&](uint64_t word) { return static_cast<uint32_t>(word >> 32) == tag; };
  return right(a) && right(b) && right(c) && right(d);
}
__device__ __forceinline__ void wait_briefly(uint32_t& waits) {
  __nanosleep(32);
  count_wait(waits);
}

/// Loads from shared memory that stay in the order in which they are written down: many, then what uses them.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress address_of(const void* p) { return shared_address(p); }
__device__ __forceinline__ void load_shared(uint4& v, SharedAddress at) {
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
}
__device__ __forceinline__ void load_shared(uint2& v, SharedAddress at) {
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
}
__device__ __forceinline__ void load_shared(uint16_t& v, SharedAddress at) {
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(at));
}

/// A count in shared memory that one thread raises: what it did before, others find done.
__device__ __forceinline__ void set_count(uint32_t* count, uint32_t to) {
  asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(shared_address(count)), "r"(to) : "memory");
}
__device__ __forceinline__ void wait_for_shared_count(const uint32_t* count, uint32_t at_least) {
  uint32_t now = 0, waits = 0;
  while (true) {
    asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(now) : "r"(shared_address(count)) : "memory");
    if (now >= at_least) return;
    count_wait(waits);
  }
}

/// Waits for `threads` threads of the block at barrier `id`, 1 to 15.
template <int id, int threads>
__device__ __forceinline__ void sync_some() {
  asm volatile("bar.sync %0, %1;" ::"n"(id), "n"(threads) : "memory");
}

/// The same at a barrier that is known when the kernel runs.
template <int threads>
__device__ __forceinline__ void sync_at(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(threads) : "memory");
}

/// What this thread and those that it has met at barriers wrote is seen by who finds the count raised.
__device__ __forceinline__ void raise_count(uint32_t* count) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
#endif
}
__device__ __forceinline__ void wait_for_count(const uint32_t* count, uint32_t at_least) {
#if __CUDA_ARCH__ >= 900
  uint32_t now = 0, waits = 0;
  while (true) {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
    if (now >= at_least) return;
    count_wait(waits);
  }
#endif
}

}  // namespace rwkvx::cuda
