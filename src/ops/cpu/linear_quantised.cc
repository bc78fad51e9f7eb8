// AVX-512 with VNNI's sums of bytes.
#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_quantised.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "ops/cpu/byte_products-inl.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_quantised.h"
#include "ops/cpu/simd-inl.h"
#include "tensor/blocks.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

using U16 = hn::Repartition<uint16_t, F>;

constexpr int64_t kParts = kGroup / kLanes;  // vectors of a unit of the group's rows
constexpr int64_t kUnit = 4 * kGroup;        // bytes
constexpr int64_t kLine = 64;                // of the caches

/// The same for signed weights. VNNI wants one side unsigned and does not saturate: weights + 128, whose part
/// of the sum the accumulator starts with. The other x86 targets move the sign to x.
#if HWY_TARGET == HWY_AVX3_DL
constexpr int32_t kSignedOffset = 128;
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, const int8_t* x) {
  return dot(acc, hn::Xor(w, hn::Set(U8(), 128)), x);
}
#elif HWY_TARGET == HWY_AVX3
constexpr int32_t kSignedOffset = 0;
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, const int8_t* x) {
  const __m512i four = broadcast(x).raw;
  const __m512i turned = _mm512_mask_sub_epi8(four, _mm512_movepi8_mask(w.raw), _mm512_setzero_si512(), four);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))});
}
#elif HWY_TARGET == HWY_AVX2
constexpr int32_t kSignedOffset = 0;
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, const int8_t* x) {
  const __m256i turned = _mm256_sign_epi8(broadcast(x).raw, w.raw);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
}
#elif HWY_TARGET == HWY_SSE4
constexpr int32_t kSignedOffset = 0;
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, const int8_t* x) {
  const __m128i turned = _mm_sign_epi8(broadcast(x).raw, w.raw);
  const __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm_madd_epi16(pairs, _mm_set1_epi16(1))});
}
#else
constexpr int32_t kSignedOffset = 128;
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, const int8_t* x) {
  return dot(acc, hn::Xor(w, hn::Set(U8(), 128)), x);
}
#endif

/// Measured: where arithmetic takes longer, with several rows, weights are wanted in the first cache.
template <int kRows>
HWY_INLINE VU8 load_unit(const std::byte* p) {
  if (kRows <= 2 || reads_pages_together) {
    fetch_ahead(p);
  } else {
    hwy::Prefetch(p + kFirstCacheAhead);
  }
  return hn::LoadU(U8(), reinterpret_cast<const uint8_t*>(p));
}
HWY_INLINE VU8 low_bits(VU8 v) { return hn::And(v, hn::Set(U8(), 15)); }
HWY_INLINE VU8 high_bits(VU8 v) {
  return hn::And(hn::BitCast(U8(), hn::ShiftRight<4>(hn::BitCast(U16(), v))), hn::Set(U8(), 15));
}
/// Bits `from` of each byte on, as many as `mask` has, moved to bit 4 on.
HWY_INLINE VU8 bits_to_4(VU8 v, int from, uint8_t mask) {
  const auto low = hn::ShiftRightSame(hn::BitCast(U16(), v), from);
  return hn::BitCast(
      U8(), hn::ShiftLeft<4>(hn::BitCast(U16(), hn::And(hn::BitCast(U8(), low), hn::Set(U8(), mask)))));
}

HWY_INLINE V as_float(VI32 v) { return hn::ConvertTo(F(), v); }
HWY_INLINE V load_f16(const std::byte* p) { return load(reinterpret_cast<const Float16*>(p)); }
HWY_INLINE V load_u8(const std::byte* p) { return load(reinterpret_cast<const uint8_t*>(p)); }
HWY_INLINE V load_i8(const std::byte* p) { return load(reinterpret_cast<const int8_t*>(p)); }

/// What one pass over a group's weights computes: sums of kRows rows of x with one vector of its rows.
template <int kRows>
struct Sums {
  V total[kRows];
  Sums() { RWKVX_UNROLL for (int r = 0; r < kRows; ++r) total[r] = zero(); }
  HWY_INLINE void add(int r, VI32 sum, V scale, const InputBlock& x) {
    total[r] = hn::MulAdd(hn::Mul(as_float(sum), set(x.scale)), scale, total[r]);
  }
};

/// Where a block's units and scales lie for one vector of rows.
struct BlockAt {
  const std::byte* units;
  const std::byte* scales;
  int64_t lane;  ///< first of the vector's rows in the group
  const std::byte* unit(int64_t u) const { return units + u * kUnit + 4 * lane; }
  const std::byte* f16(int64_t at) const { return scales + 2 * kGroup * at + 2 * lane; }
  const std::byte* bytes(int64_t at) const { return scales + kGroup * at + lane; }
};

/// x: the blocks of kRows rows, `stride` apart.
template <int kRows>
HWY_INLINE void add_q8_0(Sums<kRows>& sums, const BlockAt& w, const InputBlock* x, int64_t stride) {
  VI32 acc[kRows];
  RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
    const InputBlock& one = x[r * stride];
    acc[r] = hn::Set(I32(), -kSignedOffset * (one.sums[0] + one.sums[1]));
  }
  RWKVX_UNROLL for (int u = 0; u < 8; ++u) {
    const VU8 unit = load_unit<kRows>(w.unit(u));
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) acc[r] = dot_signed(acc[r], unit, x[r * stride].q + 4 * u);
  }
  const V scale = load_f16(w.f16(0));
  RWKVX_UNROLL for (int r = 0; r < kRows; ++r) sums.add(r, acc[r], scale, x[r * stride]);
}

template <int kRows>
HWY_INLINE void add_q4_0(Sums<kRows>& sums, const BlockAt& w, const InputBlock* x, int64_t stride) {
  VI32 acc[kRows];
  RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
    const InputBlock& one = x[r * stride];
    acc[r] = hn::Set(I32(), -8 * (one.sums[0] + one.sums[1]));
  }
  RWKVX_UNROLL for (int u = 0; u < 4; ++u) {
    const VU8 unit = load_unit<kRows>(w.unit(u)), low = low_bits(unit), high = high_bits(unit);
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      acc[r] = dot(acc[r], low, x[r * stride].q + 4 * u);
      acc[r] = dot(acc[r], high, x[r * stride].q + 16 + 4 * u);
    }
  }
  const V scale = load_f16(w.f16(0));
  RWKVX_UNROLL for (int r = 0; r < kRows; ++r) sums.add(r, acc[r], scale, x[r * stride]);
}

/// q4_k and, with a fifth bit, q5_k.
template <bool kFifthBit, int kRows>
HWY_INLINE void add_lines(Sums<kRows>& sums, const BlockAt& w, const InputBlock* x, int64_t stride) {
  constexpr int kFirst = kFifthBit ? 8 : 0;  // units of fifth bits in front
  const V d = load_f16(w.f16(0)), d_min = load_f16(w.f16(1));
  for (int pair = 0; pair < 4; ++pair) {
    VI32 acc[2][kRows];
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) acc[0][r] = acc[1][r] = hn::Zero(I32());
    const InputBlock* here = x + 2 * pair;
    RWKVX_UNROLL for (int u = 0; u < 8; ++u) {
      const VU8 unit = load_unit<kRows>(w.unit(kFirst + 8 * pair + u));
      VU8 low = low_bits(unit), high = high_bits(unit);
      if constexpr (kFifthBit) {
        const VU8 fifth = hn::LoadU(U8(), reinterpret_cast<const uint8_t*>(w.unit(u)));
        low = hn::Or(low, bits_to_4(fifth, 2 * pair, 1));
        high = hn::Or(high, bits_to_4(fifth, 2 * pair + 1, 1));
      }
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        acc[0][r] = dot(acc[0][r], low, here[r * stride].q + 4 * u);
        acc[1][r] = dot(acc[1][r], high, here[r * stride + 1].q + 4 * u);
      }
    }
    RWKVX_UNROLL for (int s = 0; s < 2; ++s) {
      const V scale = hn::Mul(d, load_u8(w.bytes(4 + 2 * pair + s)));
      const V min = hn::Mul(d_min, load_u8(w.bytes(12 + 2 * pair + s)));
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        const InputBlock& one = here[r * stride + s];
        sums.add(r, acc[s][r], scale, one);
        sums.total[r] = hn::NegMulAdd(min, set(one.scaled_sum), sums.total[r]);
      }
    }
  }
}

template <int kRows>
HWY_INLINE void add_q6_k(Sums<kRows>& sums, const BlockAt& w, const InputBlock* x, int64_t stride) {
  const V d = load_f16(w.f16(0));
  for (int half = 0; half < 2; ++half) {
    for (int pair = 0; pair < 2; ++pair) {  // blocks of 32 elements `pair` and pair + 2 of the half
      const InputBlock* here = x + 4 * half + pair;
      RWKVX_UNROLL for (int part = 0; part < 2; ++part) {  // 16 elements of one scale
        VI32 acc[2][kRows];
        RWKVX_UNROLL for (int s = 0; s < 2; ++s) {
          RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
            acc[s][r] = hn::Set(I32(), -32 * here[r * stride + 2 * s].sums[part]);
          }
        }
        RWKVX_UNROLL for (int i = 4 * part; i < 4 * part + 4; ++i) {
          // As with several rows: five instructions for each vector of weights, and two streams.
          const VU8 unit = load_unit<kFewRows>(w.unit(16 * half + 8 * pair + i));
          const VU8 two_bits = load_unit<kFewRows>(w.unit(32 + 8 * half + i));
          const VU8 low = hn::Or(low_bits(unit), bits_to_4(two_bits, 2 * pair, 3));
          const VU8 high = hn::Or(high_bits(unit), bits_to_4(two_bits, 2 * pair + 4, 3));
          RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
            acc[0][r] = dot(acc[0][r], low, here[r * stride].q + 4 * i);
            acc[1][r] = dot(acc[1][r], high, here[r * stride + 2].q + 4 * i);
          }
        }
        RWKVX_UNROLL for (int s = 0; s < 2; ++s) {
          const V scale = hn::Mul(d, load_i8(w.bytes(2 + 8 * half + 2 * (pair + 2 * s) + part)));
          RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
            sums.add(r, acc[s][r], scale, here[r * stride + 2 * s]);
          }
        }
      }
    }
  }
}

template <DType kType, int kRows>
HWY_INLINE void add_block(Sums<kRows>& sums, const BlockAt& w, const InputBlock* x, int64_t stride) {
  if constexpr (kType == DType::q8_0) return add_q8_0(sums, w, x, stride);
  if constexpr (kType == DType::q4_0) return add_q4_0(sums, w, x, stride);
  if constexpr (kType == DType::q4_k) return add_lines<false>(sums, w, x, stride);
  if constexpr (kType == DType::q5_k) return add_lines<true>(sums, w, x, stride);
  if constexpr (kType == DType::q6_k) return add_q6_k(sums, w, x, stride);
}

/// One group of weight rows: sums[r · kOutBlock + row of the group].
template <DType kType, int kRows>
HWY_INLINE void dot_group(const std::byte* group, int64_t blocks, PackedSizes sizes, const InputBlock* x,
                          int64_t stride, float* sums) {
  constexpr int64_t kInputBlocks = kType == DType::q8_0 || kType == DType::q4_0 ? 1 : 8;
  constexpr int64_t kTogether = PackedBlocks::span_blocks(kType);
  const int64_t span = PackedBlocks::span(kType), units = sizes.interleaved * kGroup;
  Sums<kRows> part[kParts];
  for (int64_t b = 0; b < blocks; b += kTogether, group += span) {
    if constexpr (kRows <= 2 && kType == DType::q5_k) {
      // The fifth bits, which load_unit() does not pass over. Nor does it over scales: asking for them too
      // gains nothing.
      for (int64_t at = 0; at < 8 * kUnit; at += kLine) fetch_ahead(group + at);
    }
    for (int64_t i = 0; i < std::min(kTogether, blocks - b); ++i) {
      const std::byte* scales = group + kTogether * units + i * sizes.scales * kGroup;
      RWKVX_UNROLL for (int64_t p = 0; p < kParts; ++p) {
        add_block<kType, kRows>(part[p], {group + i * units, scales, p * kLanes}, x + (b + i) * kInputBlocks,
                                stride);
      }
    }
  }
  RWKVX_UNROLL for (int64_t p = 0; p < kParts; ++p) {
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      store(part[p].total[r], sums + r * kOutBlock + p * kLanes);
    }
  }
}

template <DType kType>
HWY_INLINE void dot_groups(const PackedBlocks& weight, int64_t first, const InputBlock* x, int64_t rows,
                           float* sums) {
  const PackedSizes sizes = packed_sizes(kType);
  const int64_t stride = weight.blocks * info(kType).block_elements / 32;
  const int64_t group_bytes = weight.group(), groups = weight.memory.view().elements() / group_bytes;
  const auto* memory = static_cast<const std::byte*>(weight.memory.view().data());
  const int64_t end = std::min(groups, (first + kOutBlock) / kGroup);
  for (int64_t g = first / kGroup; g < end; ++g) {
    const std::byte* group = memory + g * group_bytes;
    const InputBlock* row = x;
    float* to = sums + g * kGroup - first;
    int64_t left = rows;
    // As many rows at once as there are registers for; the group stays in the cache for the others.
    constexpr int kMost = kLanes < 16 ? 2 : 8;
    const auto pass = [&]<int kRows>() {
      for (; left >= kRows; left -= kRows, row += kRows * stride, to += kRows * kOutBlock) {
        dot_group<kType, kRows>(group, weight.blocks, sizes, row, stride, to);
      }
    };
    if constexpr (kMost >= 8) pass.template operator()<8>();
    if constexpr (kMost >= 4) pass.template operator()<4>();
    pass.template operator()<2>();
    pass.template operator()<1>();
  }
}

void dot_few_rows_quantised(const PackedBlocks& weight, int64_t first, const InputBlock* x, int64_t rows,
                            float* sums) {
  switch (weight.type) {
    case DType::q8_0:
      return dot_groups<DType::q8_0>(weight, first, x, rows, sums);
    case DType::q4_0:
      return dot_groups<DType::q4_0>(weight, first, x, rows, sums);
    case DType::q4_k:
      return dot_groups<DType::q4_k>(weight, first, x, rows, sums);
    case DType::q5_k:
      return dot_groups<DType::q5_k>(weight, first, x, rows, sums);
    default:
      return dot_groups<DType::q6_k>(weight, first, x, rows, sums);
  }
}

/// Σ of 16 bytes.
HWY_INLINE int32_t sum_of_bytes(const int8_t* q) {
  const hn::FixedTag<uint8_t, 16> u8;
  const hn::FixedTag<uint64_t, 2> u64;
  const auto raised = hn::Xor(hn::LoadU(u8, reinterpret_cast<const uint8_t*>(q)), hn::Set(u8, 0x80));
  return static_cast<int32_t>(hn::GetLane(hn::SumOfLanes(u64, hn::SumsOf8(raised)))) - 16 * 128;
}

template <typename T>
HWY_INLINE void quantise_block(const T* x, InputBlock& to) {
  // Bits of absolute values order as integers do, with those that are not finite at the end.
  const hn::Rebind<int32_t, F> i32;
  auto largest = hn::Zero(i32);
  for (int i = 0; i < 32; i += kLanes) {
    largest = hn::Max(largest, hn::BitCast(i32, hn::Abs(load(x + i))));
  }
  const auto most = std::bit_cast<float>(hn::GetLane(hn::MaxOfLanes(i32, largest)));
  constexpr float kLeast = 1e-30f;  // 127 / most must be finite
  if (!(most >= kLeast && most < std::numeric_limits<float>::infinity())) {
    std::memset(&to, 0, sizeof to);
    to.scale = to.scaled_sum = most * 0.0f;  // 0 or NaN
    return;
  }
  const V inverse = set(127 / most);
  to.scale = most / 127;
  for (int i = 0; i < 32; i += kLanes) store(hn::Round(hn::Mul(load(x + i), inverse)), to.q + i);
  for (int half = 0; half < 2; ++half) to.sums[half] = sum_of_bytes(to.q + 16 * half);
  to.scaled_sum = to.scale * static_cast<float>(to.sums[0] + to.sums[1]);
}

void quantise_input(const LinearCall& call, InputBlock* to) {
  with_real_or_bf16(call.x.dtype(), call.x.data(), [&](auto* x) {
    for (int64_t i = 0; i < call.x.elements() / 32; ++i) quantise_block(x + 32 * i, to[i]);
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(quantise_input);
HWY_EXPORT(dot_few_rows_quantised);

void quantise_input(const LinearCall& call, InputBlock* to) {
  HWY_DYNAMIC_DISPATCH(quantise_input)(call, to);
}
void dot_few_rows_quantised(const PackedBlocks& weight, int64_t first, const InputBlock* x, int64_t rows,
                            float* sums) {
  HWY_DYNAMIC_DISPATCH(dot_few_rows_quantised)(weight, first, x, rows, sums);
}

}  // namespace rwkvx::cpu
#endif
