#pragma once

#include "cuda_runtime.h"

/// native/instructions.h on the host; see there.
namespace rwkvx::cuda {

inline void wait_for_previous_kernel() {}
inline void allow_next_kernel() {}

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulated::dynamic_shared_memory());
}

namespace emulated_fragments {

struct Operands {
  uint32_t a[4], b[2];
};
inline float bf16_half(uint32_t pair, int half) {
  return __uint_as_float(half == 0 ? pair << 16 : pair & 0xffff0000u);
}
inline const Operands& of(const std::byte* all, unsigned lane) {
  return *reinterpret_cast<const Operands*>(all + lane * emulated::kExchangeBytes);
}

}  // namespace emulated_fragments

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using namespace emulated_fragments;
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const std::byte* all = emulated::exchange(mine);
  const unsigned lane = emulated::lane, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned upper = i / 2, column = 2 * t + i % 2;
    float sum = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const Operands &row = of(all, g * 4 + k), &col = of(all, column * 4 + k);
      for (int half = 0; half < 2; ++half) {
        sum += bf16_half(row.a[upper], half) * bf16_half(col.b[0], half);
        sum += bf16_half(row.a[upper + 2], half) * bf16_half(col.b[1], half);
      }
    }
    d[i] += sum;
  }
}

inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  using namespace emulated_fragments;
  const auto tf32 = [](uint32_t x) { return __uint_as_float(x & 0xffffe000u); };
  const Operands mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const std::byte* all = emulated::exchange(mine);
  const unsigned lane = emulated::lane, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned upper = i / 2, column = 2 * t + i % 2;
    float sum = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const Operands &row = of(all, g * 4 + k), &col = of(all, column * 4 + k);
      sum += tf32(row.a[upper]) * tf32(col.b[0]) + tf32(row.a[upper + 2]) * tf32(col.b[1]);
    }
    d[i] += sum;
  }
}

inline uint32_t to_tf32(float x) {
  const uint32_t u = __float_as_uint(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
}

namespace emulated_fragments {

template <int Count, bool Trans>
void load_matrices(uint32_t (&r)[Count], const void* row) {
  const std::byte* all = emulated::exchange(row);
  const unsigned lane = emulated::lane;
  for (unsigned m = 0; m < Count; ++m) {
    const auto element = [&](unsigned i, unsigned j) {
      const uint16_t* from;
      memcpy(&from, all + (m * 8 + i) * emulated::kExchangeBytes, sizeof from);
      return static_cast<uint32_t>(from[j]);
    };
    const unsigned g = lane / 4, t = 2 * (lane % 4);
    r[m] = Trans ? element(t, g) | element(t + 1, g) << 16 : element(g, t) | element(g, t + 1) << 16;
  }
}

}  // namespace emulated_fragments

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  emulated_fragments::load_matrices<4, false>(r, row);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  emulated_fragments::load_matrices<4, true>(r, row);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  emulated_fragments::load_matrices<2, false>(r, row);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  emulated_fragments::load_matrices<2, true>(r, row);
}

inline void copy_async_16(void* shared, const void* global) { memcpy(shared, global, 16); }
inline void copy_async_16(void* shared, const void* global, bool valid) {
  if (valid) {
    memcpy(shared, global, 16);
  } else {
    memset(shared, 0, 16);
  }
}
inline void copy_async_commit() {}
template <int N>
void copy_async_wait() {}

inline float exp2_fast(float x) { return exp2f(x); }
inline uint4 load_once(const uint4* p) { return *p; }
inline void prefetch_l2(const void*) {}
inline int32_t take_ticket(int32_t* tickets) { return atomicAdd(tickets, 1); }
inline uint32_t pack_bf16(float low, float high) {
  const auto one = [](float x) {
    const uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (u >> 16) | 0x40u;
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  };
  return one(low) | one(high) << 16;
}
inline float half_to_float(uint16_t bits) {
  const uint32_t exponent = (bits >> 10) & 0x1fu, mantissa = bits & 0x3ffu, sign = (bits & 0x8000u) << 16;
  if (exponent == 0) {
    const float value = ldexpf(static_cast<float>(mantissa), -24);
    return sign != 0 ? -value : value;
  }
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
  return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline void copy_async_8(void* shared, const void* global) { memcpy(shared, global, 8); }

template <typename T>
T* aligned_up(T* p, uint32_t bytes) {
  return p + (bytes - reinterpret_cast<uintptr_t>(p) % bytes) % bytes / sizeof(T);
}

inline constexpr bool kHasWgmma = true;

struct SharedMatrix {
  const unsigned char* at;
  uint32_t leading_bytes, stride_bytes;
};
inline SharedMatrix shared_matrix(const void* at, uint32_t leading_bytes, uint32_t stride_bytes) {
  return {static_cast<const unsigned char*>(at), leading_bytes, stride_bytes};
}
inline SharedMatrix rows_of_n(const void* at) { return shared_matrix(at, 16, 1024); }
inline SharedMatrix rows_of_k(const void* at) { return shared_matrix(at, 1024, 1024); }
inline SharedMatrix advance(SharedMatrix matrix, uint32_t bytes) {
  return shared_matrix(matrix.at + bytes, matrix.leading_bytes, matrix.stride_bytes);
}

template <typename Registers>
void pin(Registers&) {}
inline void fence_shared_for_wgmma() {}
template <typename... Registers>
void wgmma_fence(Registers&...) {}
inline void wgmma_commit() {}
template <int N, typename... Registers>
void wgmma_wait(Registers&...) {}

template <bool kRowsOfK>
void wgmma_bf16(float (&d)[8][4], const uint32_t (&a)[4], SharedMatrix b, bool add) {
  using namespace emulated_fragments;
  const Operands mine{{a[0], a[1], a[2], a[3]}, {0, 0}};
  const std::byte* all = emulated::exchange(mine);
  const unsigned g = emulated::lane / 4, t = emulated::lane % 4;
  const auto element = [&](unsigned k, unsigned n) {
    const unsigned row = kRowsOfK ? k : n, column = kRowsOfK ? n : k;
    const auto linear =
        reinterpret_cast<uintptr_t>(b.at) + row / 8 * b.stride_bytes + row % 8 * 128 + column * 2;
    const auto* const from = reinterpret_cast<const uint16_t*>(linear ^ (linear >> 7 & 7) << 4);
    return __uint_as_float(static_cast<uint32_t>(*from) << 16);
  };
  float rows[2][16];
  for (unsigned k = 0; k < 16; ++k) {
    const Operands& from = of(all, g * 4 + k % 8 / 2);
    rows[0][k] = bf16_half(from.a[k / 8 * 2], k % 2);
    rows[1][k] = bf16_half(from.a[k / 8 * 2 + 1], k % 2);
  }
  for (unsigned j = 0; j < 8; ++j) {
    for (unsigned half = 0; half < 2; ++half) {
      float sums[2] = {};
      for (unsigned k = 0; k < 16; ++k) {
        const float x = element(k, 8 * j + 2 * t + half);
        sums[0] += rows[0][k] * x;
        sums[1] += rows[1][k] * x;
      }
      for (unsigned i = 0; i < 2; ++i) d[j][2 * i + half] = sums[i] + (add ? d[j][2 * i + half] : 0.0f);
    }
  }
}

inline uint32_t fma_bf16_pairs(uint32_t a, uint32_t b, uint32_t c) {
  using emulated_fragments::bf16_half;
  return pack_bf16(fmaf(bf16_half(a, 0), bf16_half(b, 0), bf16_half(c, 0)),
                   fmaf(bf16_half(a, 1), bf16_half(b, 1), bf16_half(c, 1)));
}
inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t picked = 0;
  for (unsigned i = 0; i < 4; ++i) {
    picked |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return picked;
}

inline void load_once_if(uint4& v, const void* p, bool valid) {
  if (valid) v = *static_cast<const uint4*>(p);
}
template <typename T>
void load_reused_if(T& v, const void* p, bool valid) {
  if (valid) v = *static_cast<const T*>(p);
}

inline void load_if(uint4& v, const void* p, bool valid) { load_reused_if(v, p, valid); }

}  // namespace rwkvx::cuda
