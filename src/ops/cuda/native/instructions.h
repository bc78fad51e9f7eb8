#pragma once

#include <cuda_runtime.h>

#include <cstdint>

/// The instructions of the GPU that kernels use beyond CUDA C++, one function each.
/// tests/emulated_gpu/instructions.h has the same functions for the host. Fragments are named as in the PTX
/// manual: lane = 4·g + t.
namespace rwkvx::cuda {

/// Programmatic dependent launch: a kernel may start while the one before it ends. Before this call a kernel
/// may read only what no earlier kernel of the stream writes (weights); every kernel makes it.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel's blocks may take the room that this one's leave.
__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Dynamic shared memory of the launch, aligned to 128 bytes.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];
  return reinterpret_cast<T*>(dynamic_shared_bytes);
}

/// d [16 × 8] += a [16 × 16] · b [16 × 8]. a: (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8), pairs along
/// k; b: (2t, g), (2t + 8, g), pairs along k; d: (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1).
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// d [16 × 8] += a [16 × 8] · b [8 × 8], of which the upper 19 bits count. a: (g, t), (g + 8, t), (g, t + 4),
/// (g + 8, t + 4); b: (t, g), (t + 4, g).
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// Rounded to 10 bits behind the point, to nearest.
__device__ __forceinline__ uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
/// 8 × 8 matrices of 16-bit elements from shared memory; lane i gives the address (16 bytes aligned) of row
/// i mod 8 of matrix i / 8. r[m] is the pair (g, 2t), (g, 2t + 1) of matrix m, or with _trans of its
/// transpose.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

/// 16 bytes from global to shared memory, both aligned to 16, in the background; zeros where not valid (the
/// address must still be one that may be read).
__device__ __forceinline__ void copy_async_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// At most the last N groups of this thread are still on their way; other threads' need a barrier too.
template <int N>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/// 2ˣ to 2 units in the last place; subnormal results are zero.
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// What is read once and not written during the kernel: past the first cache.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
/// What was there before one was added. What the block wrote before a barrier is seen by who gets a later
/// ticket, and by its block behind a barrier.
__device__ __forceinline__ int32_t take_ticket(int32_t* tickets) {
  int32_t ticket;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(ticket) : "l"(tickets) : "memory");
  return ticket;
}
/// Two bfloat16, rounded to nearest even.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
__device__ __forceinline__ float half_to_float(uint16_t bits) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
}

/// 8 bytes, as copy_async_16().
__device__ __forceinline__ void copy_async_8(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(shared)), "l"(global)
               : "memory");
}

/// The first address at or behind p that is a multiple of `bytes`, of shared memory's own addresses.
template <typename T>
__device__ __forceinline__ T* aligned_up(T* p, uint32_t bytes) {
  return p + (bytes - shared_address(p) % bytes) % bytes / sizeof(T);
}

/// Whether the build has Hopper's own instructions (sm_90a), those from here on.
#if defined(RWKVX_SM90A)
inline constexpr bool kHasWgmma = true;
#else
inline constexpr bool kHasWgmma = false;
#endif

/// The descriptor of a matrix of bfloat16 in shared memory, of rows of 128 bytes and in groups of eight rows
/// (1024 bytes, and so aligned): piece p of 16 bytes of row r lies where piece p ^ (r mod 8) would.
struct SharedMatrix {
  uint64_t bits;
};
__device__ __forceinline__ SharedMatrix shared_matrix(const void* at, uint32_t leading_bytes,
                                                      uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return {(shared_address(at) & 0x3ffffu) >> 4 | static_cast<uint64_t>(leading_bytes >> 4) << 16 |
          static_cast<uint64_t>(stride_bytes >> 4) << 32 | kSwizzle128};
}
/// b [k × n], a row for each n: k along the row.
__device__ __forceinline__ SharedMatrix rows_of_n(const void* at) { return shared_matrix(at, 16, 1024); }
/// b [k × n], a row for each k: n ≤ 64 along the row. There is no second group along n, so that the leading
/// offset does not count.
__device__ __forceinline__ SharedMatrix rows_of_k(const void* at) { return shared_matrix(at, 1024, 1024); }
__device__ __forceinline__ SharedMatrix advance(SharedMatrix matrix, uint32_t bytes) {
  return {matrix.bits + (bytes >> 4)};
}

/// Values that products in flight write or read: used neither earlier nor later than this.
__device__ __forceinline__ void pin(float (&d)[8][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    asm volatile("" : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])::"memory");
  }
}
__device__ __forceinline__ void pin(uint32_t (&a)[4][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    asm volatile("" : "+r"(a[j][0]), "+r"(a[j][1]), "+r"(a[j][2]), "+r"(a[j][3])::"memory");
  }
}
/// What this thread wrote to shared memory, or copied there and has waited for, may be read by products; a
/// barrier is needed too.
__device__ __forceinline__ void fence_shared_for_wgmma() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
/// Before the first product, and after each change of the registers that products use: those named.
template <typename... Registers>
__device__ __forceinline__ void wgmma_fence(Registers&... registers) {
  (pin(registers), ...);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
/// The products since the last call become a group.
__device__ __forceinline__ void wgmma_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
/// All groups but the last N are done: the registers named can be used.
template <int N, typename... Registers>
__device__ __forceinline__ void wgmma_wait(Registers&... registers) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
  (pin(registers), ...);
}
/// Four warps together: d [64 × 64] = or += a [64 × 16] · b [16 × 64], in the background. Warp w has rows
/// 16 w .. 16 w + 15 of a and of d, in fragments as mma_bf16() has, d[j] for columns 8 j .. 8 j + 7.
/// kRowsOfK: how b lies.
template <bool kRowsOfK>
__device__ __forceinline__ void wgmma_bf16(float (&d)[8][4], const uint32_t (&a)[4], SharedMatrix b,
                                           bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int scale_d = add ? 1 : 0;
  asm volatile(
      "{.reg .pred p; setp.ne.b32 p, %37, 0; "
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
      "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
      "{%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]),
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]),
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]),
        "+f"(d[7][2]), "+f"(d[7][3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.bits), "r"(scale_d), "n"(kRowsOfK ? 1 : 0));
#endif
}

/// a · b + c of two bfloat16 each, rounded once.
__device__ __forceinline__ uint32_t fma_bf16_pairs(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
/// Byte i of the result is byte (selector >> 4 i) & 7 of the eight of `high` and `low`, counted from low's
/// lowest.
__device__ __forceinline__ uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

/// As load_once() if valid, else v stays: never a branch.
__device__ __forceinline__ void load_once_if(uint4& v, const void* p, bool valid) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.s32 q, %5, 0;\n"
      "@q ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid)));
}
/// What never changes and other lanes or warps read too.
__device__ __forceinline__ void load_reused_if(uint4& v, const void* p, bool valid) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.s32 q, %5, 0;\n"
      "@q ld.global.nc.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid)));
}
__device__ __forceinline__ void load_reused_if(uint2& v, const void* p, bool valid) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.s32 q, %3, 0;\n"
      "@q ld.global.nc.v2.u32 {%0,%1}, [%2];\n}"
      : "+r"(v.x), "+r"(v.y)
      : "l"(p), "r"(static_cast<int>(valid)));
}
__device__ __forceinline__ void load_reused_if(uint16_t& v, const void* p, bool valid) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.s32 q, %2, 0;\n"
      "@q ld.global.nc.u16 %0, [%1];\n}"
      : "+h"(v)
      : "l"(p), "r"(static_cast<int>(valid)));
}

/// What an earlier kernel may have written, if valid.
__device__ __forceinline__ void load_if(uint4& v, const void* p, bool valid) {
  asm volatile(
      "{\n.reg .pred q;\nsetp.ne.s32 q, %5, 0;\n"
      "@q ld.global.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
      : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w)
      : "l"(p), "r"(static_cast<int>(valid))
      : "memory");
}

}  // namespace rwkvx::cuda
