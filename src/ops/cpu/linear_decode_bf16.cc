#include "base/assert.h"
#include "hwy/targets.h"
#include "ops/cpu/linear_decode.h"

// Highway has no name for these instructions. Target attributes, not compiler options: functions of headers
// must not be compiled for a processor that not everybody has.
#if HWY_ARCH_X86

// GCC 12's own header uses an undefined vector as the rest of a permutation.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define RWKVX_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512bf16")))
#define RWKVX_UNROLL _Pragma("GCC unroll 16")

namespace rwkvx::cpu {
namespace {

constexpr int64_t kStep = 32;

/// kOuts weight rows times kRows rows of x. Masks read the last, shorter step, as zeros beyond the end. The
/// order of a sum does not depend on kOuts or kRows.
template <int kOuts, int kRows>
RWKVX_AVX512_BF16 void dot_tile(const BFloat16* weight, int64_t in, const BFloat16* x, float* sums) {
  __m512 sum[kOuts][kRows];
  RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) sum[o][r] = _mm512_setzero_ps();
  }
  int64_t i = 0;
  for (; i + kStep <= in; i += kStep) {
    __m512i w[kOuts];
    RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
      w[o] = _mm512_loadu_si512(weight + o * in + i);
      if (kOuts == 1) fetch_ahead(weight + i);
    }
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      __m512i column = _mm512_loadu_si512(x + r * in + i);
      if (kOuts > 1) asm("" : "+v"(column));  // or GCC loads it again for each output
      RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
        sum[o][r] = _mm512_dpbf16_ps(sum[o][r], (__m512bh)w[o], (__m512bh)column);
      }
    }
  }
  if (i < in) {
    const auto mask = static_cast<__mmask32>((uint32_t{1} << (in - i)) - 1);
    __m512i w[kOuts];
    RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) w[o] = _mm512_maskz_loadu_epi16(mask, weight + o * in + i);
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      const __m512i column = _mm512_maskz_loadu_epi16(mask, x + r * in + i);
      RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
        sum[o][r] = _mm512_dpbf16_ps(sum[o][r], (__m512bh)w[o], (__m512bh)column);
      }
    }
  }
  RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) sums[r * kOutBlock + o] = _mm512_reduce_add_ps(sum[o][r]);
  }
}

template <int kRows>
RWKVX_AVX512_BF16 void dot_rows(const BFloat16* weight, int64_t in, int64_t outs, const BFloat16* x,
                                bool cached, float* sums) {
  constexpr int kOuts = kRows <= 6 ? 4 : 3;  // kOuts · kRows accumulators, of 32 registers
  int64_t o = 0;
  for (; cached && o + kOuts <= outs; o += kOuts) dot_tile<kOuts, kRows>(weight + o * in, in, x, sums + o);
  for (; o < outs; ++o) dot_tile<1, kRows>(weight + o * in, in, x, sums + o);
}

}  // namespace

bool has_bf16_dot() {
  return (hwy::SupportedTargets() & HWY_AVX3) != 0 && __builtin_cpu_supports("avx512bf16") != 0;
}

void dot_few_rows_bf16(const ConstView& weight, int64_t first, int64_t outs, const BFloat16* x, int64_t rows,
                       bool cached, float* sums) {
  using Kernel = void (*)(const BFloat16*, int64_t, int64_t, const BFloat16*, bool, float*);
  static constexpr Kernel kKernels[kFewRows] = {dot_rows<1>, dot_rows<2>, dot_rows<3>, dot_rows<4>,
                                                dot_rows<5>, dot_rows<6>, dot_rows<7>, dot_rows<8>};
  RWKVX_ASSERT(rows >= 1 && rows <= kFewRows);
  const int64_t in = weight.dim(1);
  kKernels[rows - 1](weight.as<BFloat16>() + first * in, in, outs, x, cached, sums);
}

}  // namespace rwkvx::cpu

#pragma GCC diagnostic pop
#else

namespace rwkvx::cpu {

bool has_bf16_dot() { return false; }
void dot_few_rows_bf16(const ConstView&, int64_t, int64_t, const BFloat16*, int64_t, bool, float*) {
  RWKVX_ASSERT(!"this processor's");
}

}  // namespace rwkvx::cpu

#endif
