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

/// x's four bytes for every lane, where several vectors of weights are multiplied with them; else they are
/// read where they are needed.
template <int kVectors>
HWY_INLINE auto four_inputs(const int8_t* x) {
  if constexpr (kVectors == 1) {
    return x;
  } else {
    return broadcast(x);
  }
}
HWY_INLINE VI8 in_lanes(VI8 x) { return x; }
HWY_INLINE VI8 in_lanes(const int8_t* x) { return broadcast(x); }

/// dot() for signed weights. VNNI wants one side unsigned and does not saturate: weights + 128, whose part
/// of the sum the accumulator starts with. The other x86 targets move the sign to x.
#if HWY_TARGET == HWY_AVX3
constexpr int32_t kSignedOffset = 0;
template <typename X>
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, X x) {
  const __m512i four = in_lanes(x).raw;
  const __m512i turned = _mm512_mask_sub_epi8(four, _mm512_movepi8_mask(w.raw), _mm512_setzero_si512(), four);
  const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))});
}
#elif HWY_TARGET == HWY_AVX2
constexpr int32_t kSignedOffset = 0;
template <typename X>
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, X x) {
  const __m256i turned = _mm256_sign_epi8(in_lanes(x).raw, w.raw);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
}
#elif HWY_TARGET == HWY_SSE4
constexpr int32_t kSignedOffset = 0;
template <typename X>
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, X x) {
  const __m128i turned = _mm_sign_epi8(in_lanes(x).raw, w.raw);
  const __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(w.raw), turned);
  return hn::Add(acc, VI32{_mm_madd_epi16(pairs, _mm_set1_epi16(1))});
}
#else
constexpr int32_t kSignedOffset = 128;
template <typename X>
HWY_INLINE VI32 dot_signed(VI32 acc, VU8 w, X x) {
  return dot(acc, hn::Xor(w, hn::Set(U8(), 128)), x);
}
#endif

/// How weights come: from memory in the order in which they lie, and bound by it or, with several rows, by
/// arithmetic; or from the cache.
enum class From { memory_bound, memory, cache };

/// Measured: where arithmetic takes longer, weights are wanted in the first cache.
template <From kFrom>
HWY_INLINE VU8 load_unit(const std::byte* p) {
  if constexpr (kFrom != From::cache) {
    if (kFrom == From::memory_bound || reads_pages_together) {
      fetch_ahead(p);
    } else {
      hwy::Prefetch(p + kFirstCacheAhead);
    }
  }
  return hn::LoadU(U8(), reinterpret_cast<const uint8_t*>(p));
}
HWY_INLINE VU8 low_bits(VU8 v) { return hn::And(v, hn::Set(U8(), 15)); }
HWY_INLINE VU8 high_bits(VU8 v) {
  return hn::And(hn::BitCast(U8(), hn::ShiftRight<4>(hn::BitCast(U16(), v))), hn::Set(U8(), 15));
}
/// four | bits of each byte of `more` from `from` on, as many as `mask` has, moved to bit 4 on. In one step
/// where the compiler knows how far, which is so with weights from the cache; from memory, shorter code is
/// faster.
template <From kFrom>
HWY_INLINE VU8 add_bits(VU8 four, VU8 more, int from, uint8_t mask) {
  const auto wide = hn::BitCast(U16(), more);
  if constexpr (kFrom == From::cache) {
    const auto moved = from < 4 ? hn::ShiftLeftSame(wide, 4 - from) : hn::ShiftRightSame(wide, from - 4);
    return hn::OrAnd(four, hn::BitCast(U8(), moved), hn::Set(U8(), static_cast<uint8_t>(mask << 4)));
  } else {
    const auto low = hn::And(hn::BitCast(U8(), hn::ShiftRightSame(wide, from)), hn::Set(U8(), mask));
    return hn::Or(four, hn::BitCast(U8(), hn::ShiftLeft<4>(hn::BitCast(U16(), low))));
  }
}
template <From kFrom, int kPairs, typename Add>
HWY_INLINE void for_pairs(Add add) {
  if constexpr (kFrom == From::cache) {
    RWKVX_UNROLL for (int pair = 0; pair < kPairs; ++pair) add(pair);
  } else {
    for (int pair = 0; pair < kPairs; ++pair) add(pair);
  }
}

HWY_INLINE V as_float(VI32 v) { return hn::ConvertTo(F(), v); }
HWY_INLINE V load_f16(const std::byte* p) { return load(reinterpret_cast<const Float16*>(p)); }
HWY_INLINE V load_u8(const std::byte* p) { return load(reinterpret_cast<const uint8_t*>(p)); }
HWY_INLINE V load_i8(const std::byte* p) { return load(reinterpret_cast<const int8_t*>(p)); }

/// What one pass over weights computes: sums of kRows rows of x with kVectors vectors of weight rows, each of
/// another group. Several of them share what is read of x.
template <int kVectors, int kRows, From kFrom>
struct Pass {
  V total[kVectors][kRows];
  Pass() {
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) total[v][r] = zero();
    }
  }
  HWY_INLINE void add(int v, int r, VI32 sum, V scale, const InputBlock& x) {
    total[v][r] = hn::MulAdd(hn::Mul(as_float(sum), set(x.scale)), scale, total[v][r]);
  }
};
template <int kVectors, int kRows>
using Accumulators = VI32[kVectors][kRows];

/// Where a block's units and scales lie for one vector of rows of the first group.
struct BlockAt {
  const std::byte* units;
  const std::byte* scales;
  int64_t lane;   ///< first of the vector's rows in the group
  int64_t group;  ///< bytes from a group to the next
  const std::byte* unit(int v, int64_t u) const { return units + v * group + u * kUnit + 4 * lane; }
  const std::byte* f16(int v, int64_t at) const { return scales + v * group + 2 * kGroup * at + 2 * lane; }
  const std::byte* bytes(int v, int64_t at) const { return scales + v * group + kGroup * at + lane; }
};

/// x: here and below the blocks of kRows rows, `stride` apart.
template <int kVectors, int kRows>
HWY_INLINE void begin_sums(const InputBlock* x, int64_t stride, int part,
                           Accumulators<kVectors, kRows>& acc) {
  RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[v][r] = hn::Set(I32(), x[r * stride].start[part]);
  }
}

/// Of types with one scale for a block.
template <int kVectors, int kRows, From kFrom>
HWY_INLINE void add_scaled(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w,
                           const Accumulators<kVectors, kRows>& acc, const InputBlock* x, int64_t stride) {
  RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
    const V scale = load_f16(w.f16(v, 0));
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) pass.add(v, r, acc[v][r], scale, x[r * stride]);
  }
}

template <int kVectors, int kRows, From kFrom>
HWY_INLINE void add_q8_0(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                         int64_t stride) {
  Accumulators<kVectors, kRows> acc;
  begin_sums<kVectors, kRows>(x, stride, 0, acc);
  RWKVX_UNROLL for (int u = 0; u < 8; ++u) {
    VU8 unit[kVectors];
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) unit[v] = load_unit<kFrom>(w.unit(v, u));
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      const auto four = four_inputs<kVectors>(x[r * stride].q + 4 * u);
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[v][r] = dot_signed(acc[v][r], unit[v], four);
    }
  }
  add_scaled(pass, w, acc, x, stride);
}

template <int kVectors, int kRows, From kFrom>
HWY_INLINE void add_q4_0(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                         int64_t stride) {
  Accumulators<kVectors, kRows> acc;
  begin_sums<kVectors, kRows>(x, stride, 0, acc);
  RWKVX_UNROLL for (int u = 0; u < 4; ++u) {
    VU8 low[kVectors], high[kVectors];
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      const VU8 unit = load_unit<kFrom>(w.unit(v, u));
      low[v] = low_bits(unit);
      high[v] = high_bits(unit);
    }
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      const auto first = four_inputs<kVectors>(x[r * stride].q + 4 * u);
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[v][r] = dot(acc[v][r], low[v], first);
      const auto second = four_inputs<kVectors>(x[r * stride].q + 16 + 4 * u);
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[v][r] = dot(acc[v][r], high[v], second);
    }
  }
  add_scaled(pass, w, acc, x, stride);
}

/// Where a unit has 4 bits for each of two blocks of inputs: how many of these are summed at a time. With two
/// vectors there are registers for one.
template <int kVectors>
constexpr int kHalves = kVectors == 1 ? 2 : 1;
HWY_INLINE VU8 four_bits(VU8 unit, int half) { return half == 0 ? low_bits(unit) : high_bits(unit); }

/// A pair of blocks of 32 elements of q4_k and, with a fifth bit, q5_k.
template <bool kFifthBit, int kVectors, int kRows, From kFrom>
HWY_INLINE void add_pair(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                         int64_t stride, int pair) {
  constexpr int kFirst = kFifthBit ? 8 : 0;  // units of fifth bits in front
  RWKVX_UNROLL for (int first = 0; first < 2; first += kHalves<kVectors>) {
    const InputBlock* here = x + 2 * pair + first;
    Accumulators<kVectors, kRows> acc[kHalves<kVectors>];
    RWKVX_UNROLL for (auto& half : acc) {
      RWKVX_UNROLL for (auto& rows : half) {
        RWKVX_UNROLL for (int r = 0; r < kRows; ++r) rows[r] = hn::Zero(I32());
      }
    }
    RWKVX_UNROLL for (int u = 0; u < 8; ++u) {
      VU8 weights[kHalves<kVectors>][kVectors];
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
        const VU8 unit = load_unit<kFrom>(w.unit(v, kFirst + 8 * pair + u));
        RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
          weights[h][v] = four_bits(unit, first + h);
          if constexpr (kFifthBit) {
            const VU8 fifth = hn::LoadU(U8(), reinterpret_cast<const uint8_t*>(w.unit(v, u)));
            weights[h][v] = add_bits<kFrom>(weights[h][v], fifth, 2 * pair + first + h, 1);
          }
        }
      }
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
          const auto four = four_inputs<kVectors>(here[r * stride + h].q + 4 * u);
          RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) acc[h][v][r] =
              dot(acc[h][v][r], weights[h][v], four);
        }
      }
    }
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      const V d = load_f16(w.f16(v, 0)), d_min = load_f16(w.f16(v, 1));
      RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
        const V scale = hn::Mul(d, load_u8(w.bytes(v, 4 + 2 * pair + first + h)));
        const V min = hn::Mul(d_min, load_u8(w.bytes(v, 12 + 2 * pair + first + h)));
        RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
          const InputBlock& one = here[r * stride + h];
          pass.add(v, r, acc[h][v][r], scale, one);
          pass.total[v][r] = hn::NegMulAdd(min, set(one.scaled_sum), pass.total[v][r]);
        }
      }
    }
  }
}

template <bool kFifthBit, int kVectors, int kRows, From kFrom>
HWY_INLINE void add_lines(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                          int64_t stride) {
  if constexpr (kFifthBit) {
    for_pairs<kFrom, 4>([&](int pair) HWY_ATTR { add_pair<true>(pass, w, x, stride, pair); });
  } else {
    for (int pair = 0; pair < 4; ++pair) add_pair<false>(pass, w, x, stride, pair);
  }
}

/// Blocks of 32 elements `pair` and pair + 2 of a half of q6_k.
template <int kVectors, int kRows, From kFrom>
HWY_INLINE void add_q6_k_pair(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                              int64_t stride, int half, int pair) {
  // From memory as with several rows: five instructions for each vector of weights, and two streams.
  constexpr From kUnits = kFrom == From::memory_bound ? From::memory : kFrom;
  RWKVX_UNROLL for (int part = 0; part < 2; ++part) {  // 16 elements of one scale
    RWKVX_UNROLL for (int first = 0; first < 2; first += kHalves<kVectors>) {
      const InputBlock* here = x + 4 * half + pair + 2 * first;
      Accumulators<kVectors, kRows> acc[kHalves<kVectors>];
      RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
        begin_sums<kVectors, kRows>(here + 2 * h, stride, part, acc[h]);
      }
      RWKVX_UNROLL for (int i = 4 * part; i < 4 * part + 4; ++i) {
        VU8 weights[kHalves<kVectors>][kVectors];
        RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
          const VU8 unit = load_unit<kUnits>(w.unit(v, 16 * half + 8 * pair + i));
          const VU8 two_bits = load_unit<kUnits>(w.unit(v, 32 + 8 * half + i));
          RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
            weights[h][v] =
                add_bits<kFrom>(four_bits(unit, first + h), two_bits, 2 * pair + 4 * (first + h), 3);
          }
        }
        RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
          RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
            const auto four = four_inputs<kVectors>(here[r * stride + 2 * h].q + 4 * i);
            RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
              acc[h][v][r] = dot(acc[h][v][r], weights[h][v], four);
            }
          }
        }
      }
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
        const V d = load_f16(w.f16(v, 0));
        RWKVX_UNROLL for (int h = 0; h < kHalves<kVectors>; ++h) {
          const V scale = hn::Mul(d, load_i8(w.bytes(v, 2 + 8 * half + 2 * (pair + 2 * (first + h)) + part)));
          RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
            pass.add(v, r, acc[h][v][r], scale, here[r * stride + 2 * h]);
          }
        }
      }
    }
  }
}

template <int kVectors, int kRows, From kFrom>
HWY_INLINE void add_q6_k(Pass<kVectors, kRows, kFrom>& pass, const BlockAt& w, const InputBlock* x,
                         int64_t stride) {
  for (int half = 0; half < 2; ++half) {
    for_pairs<kFrom, 2>([&](int pair) HWY_ATTR { add_q6_k_pair(pass, w, x, stride, half, pair); });
  }
}

template <DType kType, typename Pass>
HWY_INLINE void add_block(Pass& pass, const BlockAt& w, const InputBlock* x, int64_t stride) {
  if constexpr (kType == DType::q8_0) return add_q8_0(pass, w, x, stride);
  if constexpr (kType == DType::q4_0) return add_q4_0(pass, w, x, stride);
  if constexpr (kType == DType::q4_k) return add_lines<false>(pass, w, x, stride);
  if constexpr (kType == DType::q5_k) return add_lines<true>(pass, w, x, stride);
  if constexpr (kType == DType::q6_k) return add_q6_k(pass, w, x, stride);
}

/// Groups of weight rows at `group`, and rows of x.
struct GroupsAndRows {
  const std::byte* group;
  int64_t group_bytes, blocks;
  PackedSizes sizes;
  const InputBlock* x;
  int64_t stride;  ///< from row to row
  float* sums;     ///< [rows, kOutBlock], from the first group's on
};

template <DType kType, int kVectors, int kRows, From kFrom>
HWY_INLINE void dot_groups_and_rows(const GroupsAndRows& of) {
  constexpr int64_t kInputBlocks = kType == DType::q8_0 || kType == DType::q4_0 ? 1 : 8;
  constexpr int64_t kTogether = PackedBlocks::span_blocks(kType);
  const int64_t span = PackedBlocks::span(kType), units = of.sizes.interleaved * kGroup;
  const std::byte* group = of.group;
  Pass<kVectors, kRows, kFrom> pass[kParts];
  for (int64_t b = 0; b < of.blocks; b += kTogether, group += span) {
    if constexpr (kFrom == From::memory_bound && kType == DType::q5_k) {
      // The fifth bits, which load_unit() does not pass over. Nor does it over scales: asking for them too
      // gains nothing.
      for (int64_t at = 0; at < 8 * kUnit; at += kLine) fetch_ahead(group + at);
    }
    for (int64_t i = 0; i < std::min(kTogether, of.blocks - b); ++i) {
      const std::byte* scales = group + kTogether * units + i * of.sizes.scales * kGroup;
      RWKVX_UNROLL for (int64_t p = 0; p < kParts; ++p) {
        add_block<kType>(pass[p], {group + i * units, scales, p * kLanes, of.group_bytes},
                         of.x + (b + i) * kInputBlocks, of.stride);
      }
    }
  }
  RWKVX_UNROLL for (int64_t p = 0; p < kParts; ++p) {
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        store(pass[p].total[v][r], of.sums + r * kOutBlock + v * kGroup + p * kLanes);
      }
    }
  }
}

/// How many rows of x go with one vector of weights and with two: as many as there are registers for.
/// Narrower vectors, of which there are 16, have none left for a second one.
constexpr bool kTwoVectors = HWY_TARGET <= HWY_AVX3;
constexpr int kRowsOfOne = kLanes < 16 ? 2 : 8, kRowsOfTwo = 6;

template <DType kType>
HWY_INLINE void dot_groups(const RowsAndBlocks& of) {
  const PackedBlocks& weight = *of.weight;
  const int64_t stride = weight.blocks * info(kType).block_elements / 32;
  const int64_t group_bytes = weight.group(), groups = weight.memory.view().elements() / group_bytes;
  const auto* memory = static_cast<const std::byte*>(weight.memory.view().data());
  const int64_t begin = of.first / kGroup;
  const int64_t end = std::min(groups, (of.first + of.outs + kGroup - 1) / kGroup);
  int64_t row = 0;
  const auto pass = [&]<int kVectors, int kRows, From kFrom>(int64_t g) {
    for (; of.rows - row >= kRows; row += kRows) {
      dot_groups_and_rows<kType, kVectors, kRows, kFrom>(
          {.group = memory + g * group_bytes,
           .group_bytes = group_bytes,
           .blocks = weight.blocks,
           .sizes = packed_sizes(kType),
           .x = of.x + row * stride,
           .stride = stride,
           .sums = of.sums + row * kOutBlock + (g - begin) * kGroup});
    }
  };
  int64_t g = begin;
  if constexpr (kTwoVectors) {
    // From the cache only: two groups are two streams, and memory does not deliver them as fast as one.
    for (; of.cached && g + 1 < end; g += 2, row = 0) {
      pass.template operator()<2, kRowsOfTwo, From::cache>(g);
      pass.template operator()<2, 2, From::cache>(g);
      pass.template operator()<2, 1, From::cache>(g);
    }
  }
  for (; g < end; ++g, row = 0) {
    if constexpr (kRowsOfOne > 4) {
      pass.template operator()<1, kRowsOfOne, From::memory>(g);
      pass.template operator()<1, 4, From::memory>(g);
    }
    pass.template operator()<1, 2, From::memory_bound>(g);
    pass.template operator()<1, 1, From::memory_bound>(g);
  }
}

void dot_rows_quantised(const RowsAndBlocks& of) {
  switch (of.weight->type) {
    case DType::q8_0:
      return dot_groups<DType::q8_0>(of);
    case DType::q4_0:
      return dot_groups<DType::q4_0>(of);
    case DType::q4_k:
      return dot_groups<DType::q4_k>(of);
    case DType::q5_k:
      return dot_groups<DType::q5_k>(of);
    default:
      return dot_groups<DType::q6_k>(of);
  }
}

/// Σ of 16 bytes.
HWY_INLINE int32_t sum_of_bytes(const int8_t* q) {
  const hn::FixedTag<uint8_t, 16> u8;
  const hn::FixedTag<uint64_t, 2> u64;
  const auto raised = hn::Xor(hn::LoadU(u8, reinterpret_cast<const uint8_t*>(q)), hn::Set(u8, 0x80));
  return static_cast<int32_t>(hn::GetLane(hn::SumOfLanes(u64, hn::SumsOf8(raised)))) - 16 * 128;
}

/// What InputBlock::start[] is times the sum of the inputs, where it is of all or of a half.
struct Starts {
  int32_t of_all, of_half;
};
Starts starts_of(DType weight) {
  if (weight == DType::q8_0) return {-kSignedOffset, 0};
  if (weight == DType::q4_0) return {-8, 0};
  if (weight == DType::q6_k) return {0, -32};
  return {0, 0};
}

HWY_INLINE void store_last_bytes(V v, int8_t* to) {
#if HWY_TARGET <= HWY_AVX3
  // Highway 1.0.3's TruncateTo() moves other bytes for AVX3_DL.
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(v.raw)));
#else
  const hn::Rebind<uint32_t, F> u32;
  const hn::Rebind<uint8_t, F> u8;
  hn::StoreU(hn::TruncateTo(u8, hn::BitCast(u32, v)), u8, reinterpret_cast<uint8_t*>(to));
#endif
}

template <typename T>
HWY_INLINE void quantise_block(const T* x, Starts starts, InputBlock& to) {
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
  for (int i = 0; i < 32; i += kLanes) {
    // The sum's last bit stands for 1, so that its last byte is the rounded number.
    store_last_bytes(hn::Add(hn::Mul(load(x + i), inverse), set(0x1.8p23f)), to.q + i);
  }
  const int32_t halves[] = {sum_of_bytes(to.q), sum_of_bytes(to.q + 16)}, sum = halves[0] + halves[1];
  for (int i = 0; i < 2; ++i) to.start[i] = starts.of_all * sum + starts.of_half * halves[i];
  to.scaled_sum = to.scale * static_cast<float>(sum);
}

void quantise_input(const LinearCall& call, InputBlock* to) {
  const Starts offsets = starts_of(call.w->weight.dtype());
  with_real_or_bf16(call.x.dtype(), call.x.data(), [&](auto* x) {
    for (int64_t i = 0; i < call.x.elements() / 32; ++i) quantise_block(x + 32 * i, offsets, to[i]);
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(quantise_input);
HWY_EXPORT(dot_rows_quantised);

void quantise_input(const LinearCall& call, InputBlock* to) {
  HWY_DYNAMIC_DISPATCH(quantise_input)(call, to);
}
void dot_rows_quantised(const RowsAndBlocks& of) { HWY_DYNAMIC_DISPATCH(dot_rows_quantised)(of); }

}  // namespace rwkvx::cpu
#endif
