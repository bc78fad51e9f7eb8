#include "ops/cpu/tile_weights.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "hwy/targets.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/tiles.h"

#if HWY_ARCH_X86
// GCC 12's own header uses an undefined vector as the rest of a permutation.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

#define RWKVX_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,f16c")))
#define RWKVX_UNROLL _Pragma("GCC unroll 16")
#endif

namespace rwkvx::cpu {

namespace {

/// Two panels share the memory of their tiles, step by step.
constexpr int64_t kNextStep = 2 * kTileElements;
int64_t panel_at(int64_t panel, int64_t steps) {
  return panel / 2 * steps * kNextStep + panel % 2 * kTileElements;
}

}  // namespace

int64_t strip_parts(DType type) { return type == DType::f16 ? 2 : 1; }

void fill_strip_plain(const StripOf& strip, int64_t part, BFloat16* to) {
  const int64_t in = strip.weight.dim(1), out = strip.weight.dim(0);
  const int64_t inputs = std::min(strip.steps * kTileDepth, in - strip.input);
  std::vector<float> row(static_cast<size_t>(inputs));
  std::memset(to, 0, static_cast<size_t>(4 * strip.steps * kTileElements) * sizeof(BFloat16));
  for (int64_t o = 0; o < std::min(kStripColumns, out - strip.first); ++o) {
    const auto* from = static_cast<const std::byte*>(strip.weight.data()) +
                       bytes_of(strip.weight.dtype(), (strip.first + o) * in + strip.input);
    convert(from, strip.weight.dtype(), row.data(), DType::f32, inputs);
    BFloat16* panel = to + panel_at(o / kTileRows, strip.steps) + o % kTileRows * 2;
    for (int64_t k = 0; k < inputs; ++k) {
      const float value = row[static_cast<size_t>(k)];
      BFloat16 rounded = to_bfloat16(value);
      if (part == 1) {
        const float high = to_float(rounded);
        rounded = to_bfloat16(std::isfinite(high) ? value - high : 0.0f);
      }
      panel[k / kTileDepth * kNextStep + k % kTileDepth / 2 * kTileDepth + k % 2] = rounded;
    }
  }
}

#if HWY_ARCH_X86

namespace {

/// Row r of the result is pair r of each of 16 rows.
RWKVX_AVX512 void transpose_pairs(const BFloat16* from, int64_t stride, BFloat16* to) {
  const auto quarter = [&](int64_t row, int c) RWKVX_AVX512 {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + row * stride + 8 * c));
  };
  RWKVX_UNROLL for (int c = 0; c < 4; ++c) {
    __m512i z[4];  // z[i]: 4 pairs of the rows i, 4 + i, 8 + i and 12 + i
    RWKVX_UNROLL for (int i = 0; i < 4; ++i) {
      z[i] = _mm512_castsi128_si512(quarter(i, c));
      z[i] = _mm512_inserti32x4(z[i], quarter(4 + i, c), 1);
      z[i] = _mm512_inserti32x4(z[i], quarter(8 + i, c), 2);
      z[i] = _mm512_inserti32x4(z[i], quarter(12 + i, c), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(z[0], z[1]), high01 = _mm512_unpackhi_epi32(z[0], z[1]);
    const __m512i low23 = _mm512_unpacklo_epi32(z[2], z[3]), high23 = _mm512_unpackhi_epi32(z[2], z[3]);
    BFloat16* rows = to + 4 * c * kTileDepth;
    _mm512_storeu_si512(rows, _mm512_unpacklo_epi64(low01, low23));
    _mm512_storeu_si512(rows + kTileDepth, _mm512_unpackhi_epi64(low01, low23));
    _mm512_storeu_si512(rows + 2 * kTileDepth, _mm512_unpacklo_epi64(high01, high23));
    _mm512_storeu_si512(rows + 3 * kTileDepth, _mm512_unpackhi_epi64(high01, high23));
  }
}

/// 16 float16 rows' 32 inputs as bfloat16, rounded (part 0) or what rounding took (part 1).
RWKVX_AVX512 void split_f16(const Float16* from, int64_t stride, int64_t part, BFloat16* to) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    RWKVX_UNROLL for (int half = 0; half < 2; ++half) {
      const auto* p = reinterpret_cast<const __m256i*>(from + r * stride + 16 * half);
      const __m512 value = _mm512_cvtph_ps(_mm256_loadu_si256(p));
      __m256i rounded = (__m256i)_mm512_cvtneps_pbh(value);
      if (part == 1) {
        const __m512 high = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
        const __mmask16 finite =
            _mm512_cmp_ps_mask(_mm512_sub_ps(high, high), _mm512_setzero_ps(), _CMP_EQ_OQ);
        rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_sub_ps(finite, value, high));
      }
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * kTileDepth + 16 * half), rounded);
    }
  }
}

RWKVX_AVX512 void fill_panel_16_bits(const StripOf& strip, int64_t first, int64_t part, BFloat16* to) {
  const int64_t in = strip.weight.dim(1), outs = std::min(kTileRows, strip.weight.dim(0) - first);
  alignas(64) BFloat16 block[kTileElements];
  for (int64_t step = 0; step < strip.steps; ++step, to += kNextStep) {
    const int64_t input = strip.input + step * kTileDepth, inputs = std::min(kTileDepth, in - input);
    const auto* bits = static_cast<const uint16_t*>(strip.weight.data()) + first * in + input;
    int64_t stride = in;
    alignas(64) uint16_t edge[kTileElements];
    if (outs < kTileRows || inputs < kTileDepth) {
      std::memset(edge, 0, sizeof edge);
      for (int64_t o = 0; o < outs; ++o) std::copy_n(bits + o * in, inputs, edge + o * kTileDepth);
      bits = edge;
      stride = kTileDepth;
    }
    const auto* from = reinterpret_cast<const BFloat16*>(bits);
    if (strip.weight.dtype() == DType::f16) {
      split_f16(reinterpret_cast<const Float16*>(bits), stride, part, block);
      from = block;
      stride = kTileDepth;
    }
    transpose_pairs(from, stride, to);
  }
}

/// Four inputs of 16 rows, a byte each, as q · scale − minimum, to two rows of a tile.
template <bool kSigned>
RWKVX_AVX512 inline void put_unit(__m512i unit, __m512 scale, __m512 minimum, BFloat16* to) {
  alignas(64) static constexpr auto kPairs = [] {
    struct {
      uint16_t from[32];
    } order{};
    for (int i = 0; i < 32; ++i) order.from[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
    return order;
  }();
  __m512 value[4];
  RWKVX_UNROLL for (int i = 0; i < 4; ++i) {
    const __m512i q = kSigned ? _mm512_srai_epi32(_mm512_slli_epi32(unit, 24 - 8 * i), 24)
                              : _mm512_and_si512(_mm512_srli_epi32(unit, 8 * i), _mm512_set1_epi32(255));
    value[i] = _mm512_fmsub_ps(_mm512_cvtepi32_ps(q), scale, minimum);
  }
  const __m512i pairs = _mm512_load_si512(kPairs.from);
  const auto first = (__m512i)_mm512_cvtne2ps_pbh(value[1], value[0]);
  const auto second = (__m512i)_mm512_cvtne2ps_pbh(value[3], value[2]);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(pairs, first));
  _mm512_storeu_si512(to + kTileDepth, _mm512_permutexvar_epi16(pairs, second));
}

constexpr int64_t kUnit = 4 * kGroup;  // bytes

/// Where a block's units and scales lie (PackedBlocks), and its tiles.
struct BlockAt {
  const std::byte *units, *scales;
  BFloat16* to;
  RWKVX_AVX512 __m512i unit(int64_t u) const { return _mm512_loadu_si512(units + u * kUnit); }
  RWKVX_AVX512 __m512 f16(int64_t at) const {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 2 * kGroup * at)));
  }
  RWKVX_AVX512 __m128i bytes(int64_t at) const {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + kGroup * at));
  }
  /// Rows of tile `tile` from pair `pair` on.
  BFloat16* rows(int64_t tile, int64_t pair) const { return to + tile * kNextStep + pair * kTileDepth; }
};

RWKVX_AVX512 inline __m512i low_bits(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
RWKVX_AVX512 inline __m512i high_bits(__m512i v) { return low_bits(_mm512_srli_epi16(v, 4)); }
/// Bits `from` of each byte on, as many as `mask` has, moved to bit 4 on.
RWKVX_AVX512 inline __m512i bits_to_4(__m512i v, int from, char mask) {
  const __m512i low = _mm512_srl_epi16(v, _mm_cvtsi32_si128(from));
  return _mm512_slli_epi16(_mm512_and_si512(low, _mm512_set1_epi8(mask)), 4);
}

RWKVX_AVX512 void expand_q8_0(const BlockAt& b) {
  const __m512 scale = b.f16(0);
  RWKVX_UNROLL for (int u = 0; u < 8; ++u)
      put_unit<true>(b.unit(u), scale, _mm512_setzero_ps(), b.rows(0, 2 * u));
}

RWKVX_AVX512 void expand_q4_0(const BlockAt& b) {
  const __m512 scale = b.f16(0), minimum = _mm512_mul_ps(scale, _mm512_set1_ps(8));
  RWKVX_UNROLL for (int u = 0; u < 4; ++u) {
    const __m512i unit = b.unit(u);
    put_unit<false>(low_bits(unit), scale, minimum, b.rows(0, 2 * u));
    put_unit<false>(high_bits(unit), scale, minimum, b.rows(0, 8 + 2 * u));
  }
}

/// q4_k and, with a fifth bit, q5_k.
template <bool kFifthBit>
RWKVX_AVX512 void expand_lines(const BlockAt& b) {
  constexpr int kFirst = kFifthBit ? 8 : 0;  // units of fifth bits in front
  const __m512 d = b.f16(0), d_min = b.f16(1);
  for (int pair = 0; pair < 4; ++pair) {
    __m512 scale[2], minimum[2];
    RWKVX_UNROLL for (int s = 0; s < 2; ++s) {
      const __m512i sub_scale = _mm512_cvtepu8_epi32(b.bytes(4 + 2 * pair + s));
      const __m512i sub_min = _mm512_cvtepu8_epi32(b.bytes(12 + 2 * pair + s));
      scale[s] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sub_scale));
      minimum[s] = _mm512_mul_ps(d_min, _mm512_cvtepi32_ps(sub_min));
    }
    RWKVX_UNROLL for (int u = 0; u < 8; ++u) {
      const __m512i unit = b.unit(kFirst + 8 * pair + u);
      __m512i low = low_bits(unit), high = high_bits(unit);
      if constexpr (kFifthBit) {
        const __m512i fifth = b.unit(u);
        low = _mm512_or_si512(low, bits_to_4(fifth, 2 * pair, 1));
        high = _mm512_or_si512(high, bits_to_4(fifth, 2 * pair + 1, 1));
      }
      put_unit<false>(low, scale[0], minimum[0], b.rows(2 * pair, 2 * u));
      put_unit<false>(high, scale[1], minimum[1], b.rows(2 * pair + 1, 2 * u));
    }
  }
}

RWKVX_AVX512 void expand_q6_k(const BlockAt& b) {
  const __m512 d = b.f16(0);
  for (int half = 0; half < 2; ++half) {
    for (int pair = 0; pair < 2; ++pair) {                 // 32 elements `pair` and pair + 2 of the half
      RWKVX_UNROLL for (int part = 0; part < 2; ++part) {  // 16 elements of one scale
        __m512 scale[2], minimum[2];
        RWKVX_UNROLL for (int s = 0; s < 2; ++s) {
          const __m512i sub = _mm512_cvtepi8_epi32(b.bytes(2 + 8 * half + 2 * (pair + 2 * s) + part));
          scale[s] = _mm512_mul_ps(d, _mm512_cvtepi32_ps(sub));
          minimum[s] = _mm512_mul_ps(scale[s], _mm512_set1_ps(32));
        }
        RWKVX_UNROLL for (int i = 4 * part; i < 4 * part + 4; ++i) {
          const __m512i unit = b.unit(16 * half + 8 * pair + i), two_bits = b.unit(32 + 8 * half + i);
          const __m512i low = _mm512_or_si512(low_bits(unit), bits_to_4(two_bits, 2 * pair, 3));
          const __m512i high = _mm512_or_si512(high_bits(unit), bits_to_4(two_bits, 2 * pair + 4, 3));
          put_unit<false>(low, scale[0], minimum[0], b.rows(4 * half + pair, 2 * i));
          put_unit<false>(high, scale[1], minimum[1], b.rows(4 * half + pair + 2, 2 * i));
        }
      }
    }
  }
}

template <DType kType>
RWKVX_AVX512 void fill_panel_quantised(const StripOf& strip, int64_t first, BFloat16* to) {
  constexpr int64_t kTogether = PackedBlocks::span_blocks(kType);
  const int64_t elements = info(kType).block_elements;
  const PackedSizes sizes = packed_sizes(kType);
  const int64_t span = PackedBlocks::span(kType), units = sizes.interleaved * kGroup;
  const auto* group = static_cast<const std::byte*>(strip.blocks->memory.view().data()) +
                      first / kGroup * strip.blocks->group();
  const int64_t begin = strip.input / elements;
  const int64_t end = std::min(begin + strip.steps * kTileDepth / elements, strip.blocks->blocks);
  for (int64_t block = begin; block < end; ++block, to += elements / kTileDepth * kNextStep) {
    const std::byte* at = group + block / kTogether * span;
    const int64_t i = block % kTogether;
    const BlockAt b{at + i * units, at + kTogether * units + i * sizes.scales * kGroup, to};
    if constexpr (kType == DType::q8_0) expand_q8_0(b);
    if constexpr (kType == DType::q4_0) expand_q4_0(b);
    if constexpr (kType == DType::q4_k) expand_lines<false>(b);
    if constexpr (kType == DType::q5_k) expand_lines<true>(b);
    if constexpr (kType == DType::q6_k) expand_q6_k(b);
  }
}

void fill_panel(const StripOf& strip, int64_t first, int64_t part, BFloat16* to) {
  switch (strip.weight.dtype()) {
    case DType::q8_0:
      return fill_panel_quantised<DType::q8_0>(strip, first, to);
    case DType::q4_0:
      return fill_panel_quantised<DType::q4_0>(strip, first, to);
    case DType::q4_k:
      return fill_panel_quantised<DType::q4_k>(strip, first, to);
    case DType::q5_k:
      return fill_panel_quantised<DType::q5_k>(strip, first, to);
    case DType::q6_k:
      return fill_panel_quantised<DType::q6_k>(strip, first, to);
    default:
      return fill_panel_16_bits(strip, first, part, to);
  }
}

void fill_strip_avx512(const StripOf& strip, int64_t part, BFloat16* to) {
  const int64_t end = std::min(strip.first + kStripColumns, strip.weight.dim(0));
  for (int64_t first = strip.first; first < end; first += kTileRows) {
    fill_panel(strip, first, part, to + panel_at((first - strip.first) / kTileRows, strip.steps));
  }
}

}  // namespace

FillStrip fill_strip() { return has_bf16_dot() ? fill_strip_avx512 : fill_strip_plain; }

#pragma GCC diagnostic pop

#else

FillStrip fill_strip() { return fill_strip_plain; }

#endif

}  // namespace rwkvx::cpu
