#pragma once

#include "ops/cuda/kernel.h"
#include "ops/cuda/weight_units.h"

/// The units of weight_units.h for tensor cores: what one lane loads, kept as it was loaded, and its groups
/// of 8 elements as 4 pairs of bfloat16. kMixed: the pairs of a group are elements 0 2, 1 3, 4 6, 5 7.
/// kAhead: units of a row that a lane has under way.
namespace rwkvx::cuda {

/// The words of 8 elements of x in the order of a group.
template <bool mixed>
__device__ __forceinline__ uint4 in_group_order(const uint4& x) {
  if (!mixed) return x;
  return make_uint4(pick_bytes(x.x, x.y, 0x5410), pick_bytes(x.x, x.y, 0x7632), pick_bytes(x.z, x.w, 0x5410),
                    pick_bytes(x.z, x.w, 0x7632));
}
__device__ __forceinline__ uint32_t word_of(const uint4& quad, int i) {
  return i == 0 ? quad.x : (i == 1 ? quad.y : (i == 2 ? quad.z : quad.w));
}

inline constexpr uint4 kNoWords{0, 0, 0, 0};
inline constexpr uint32_t kOnes = 0x3f803f80u;  // pairs of bfloat16
inline constexpr uint32_t kMinus128 = 0xc300c300u;
inline constexpr uint32_t kMinus136 = 0xc308c308u;
inline constexpr uint32_t kMinus160 = 0xc320c320u;
inline constexpr uint32_t kMinusZeros = 0x80008000u;
/// Codes below 128 in the low bits of both halves become 128 + code as bfloat16.
__device__ __forceinline__ uint32_t codes_above_128(uint32_t codes, uint32_t mask) {
  return (codes & mask) | 0x43004300u;
}
/// Pairs (code · 1 + minus) · scale + offset of bytes 0 2 and 1 3 of a word of codes.
__device__ __forceinline__ void pairs_of_codes(uint32_t word, uint32_t mask, uint32_t minus, uint32_t scale,
                                               uint32_t offset, uint32_t& even, uint32_t& odd) {
  even = fma_bf16_pairs(fma_bf16_pairs(codes_above_128(word, mask), kOnes, minus), scale, offset);
  odd = fma_bf16_pairs(fma_bf16_pairs(codes_above_128(word >> 8, mask), kOnes, minus), scale, offset);
}

struct TensorBf16 {
  static constexpr DType kType = DType::bf16;
  static constexpr int kElements = 8;
  static constexpr bool kMixed = false;
  static constexpr int kAhead = 10, kAheadOfMore = 5;
  uint4 a;
  struct Scales {};
  __device__ __forceinline__ void clear() { a = kNoWords; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    load_once_if(a, row.body + static_cast<int64_t>(unit) * 16, valid);
  }
  __device__ __forceinline__ static int at(int unit, int) { return unit * 8; }
  __device__ __forceinline__ Scales scales(int) const { return {}; }
  __device__ __forceinline__ void pairs(const Scales&, int, int, uint32_t (&w)[4]) const {
    w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w;
  }
};

struct TensorQ8_0 {
  static constexpr DType kType = DType::q8_0;
  static constexpr int kElements = 16;
  static constexpr bool kMixed = false;
  static constexpr int kAhead = 5, kAheadOfMore = 4;
  uint4 q;
  uint16_t d;
  struct Scales {
    float d, offset;
  };
  __device__ __forceinline__ void clear() { q = kNoWords, d = 0; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    load_once_if(q, row.body + static_cast<int64_t>(unit) * 16, valid);
    load_reused_if(d, row.scales + unit / 2, valid);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ8_0::at(unit, group); }
  __device__ __forceinline__ Scales scales(int) const {
    const float scale = half_to_float(d);
    return {scale, -32896.0f * scale};
  }
  /// With q + 128 in bits 8 … 15 a float32 of this exponent is 32768 + 128 + q; the error is d / 1024 at
  /// most.
  __device__ __forceinline__ void pairs(const Scales& s, int, int g, uint32_t (&w)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = word_of(q, 2 * g + half) ^ 0x80808080u;
      float values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint32_t number = pick_bytes(word, 0x47000000u, 0x7404u | static_cast<uint32_t>(i) << 4);
        values[i] = fmaf(__uint_as_float(number), s.d, s.offset);
      }
      w[2 * half] = pack_bf16(values[0], values[1]);
      w[2 * half + 1] = pack_bf16(values[2], values[3]);
    }
  }
};

struct TensorQ4_0 {
  static constexpr DType kType = DType::q4_0;
  static constexpr int kElements = 32;
  static constexpr bool kMixed = true;
  static constexpr int kAhead = 4, kAheadOfMore = 3;
  uint4 q;
  uint16_t d;
  using Scales = uint32_t;
  __device__ __forceinline__ void clear() { q = kNoWords, d = 0; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    load_once_if(q, row.body + static_cast<int64_t>(unit) * 16, valid);
    load_reused_if(d, row.scales + unit, valid);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ4_0::at(unit, group); }
  __device__ __forceinline__ Scales scales(int) const {
    const float scale = half_to_float(d);
    return pack_bf16(scale, scale);
  }
  __device__ __forceinline__ void pairs(const Scales& scale, int, int g, uint32_t (&w)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = word_of(q, g % 2 * 2 + half) >> (g / 2 * 4);
      pairs_of_codes(word, 0x000f000fu, kMinus136, scale, kMinusZeros, w[2 * half], w[2 * half + 1]);
    }
  }
};

/// Of two sub-blocks, as pairs; `offset` is minus the minimum.
struct SubBlockPairs {
  uint32_t scale[2], offset[2];
};
/// Of sub-blocks 2 p and 2 p + 1 of the header of a K block: sub_scale_and_min() for both at once.
__device__ __forceinline__ SubBlockPairs sub_block_pairs(const uint4& header, int p) {
  uint32_t scales, minima;  // of four sub-blocks, a byte each
  if (p < 2) {
    scales = header.y & 0x3f3f3f3fu;
    minima = header.z & 0x3f3f3f3fu;
  } else {
    scales = (header.w & 0x0f0f0f0fu) | (header.y >> 2 & 0x30303030u);
    minima = (header.w >> 4 & 0x0f0f0f0fu) | (header.z >> 2 & 0x30303030u);
  }
  scales >>= p % 2 * 16;
  minima >>= p % 2 * 16;
  const float d = half_to_float(static_cast<uint16_t>(header.x)),
              d_min = -half_to_float(static_cast<uint16_t>(header.x >> 16));
  SubBlockPairs all;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float scale = d * static_cast<float>(scales >> (8 * i) & 0xff);
    const float offset = d_min * static_cast<float>(minima >> (8 * i) & 0xff);
    all.scale[i] = pack_bf16(scale, scale);
    all.offset[i] = pack_bf16(offset, offset);
  }
  return all;
}

struct TensorQ4_K {
  static constexpr DType kType = DType::q4_k;
  static constexpr int kElements = 32;
  static constexpr bool kMixed = true;
  static constexpr int kAhead = 3, kAheadOfMore = 2;
  uint4 header, q;
  using Scales = SubBlockPairs;
  __device__ __forceinline__ void clear() { header = q = kNoWords; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * static_cast<int>(sizeof(BlockQ4_K));
    load_reused_if(header, block, valid);
    load_once_if(q, block + 16 + unit % 8 * 16, valid);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ4_K::at(unit, group); }
  __device__ __forceinline__ Scales scales(int unit) const { return sub_block_pairs(header, unit % 8 / 2); }
  __device__ __forceinline__ void pairs(const Scales& s, int, int g, uint32_t (&w)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = word_of(q, g % 2 * 2 + half) >> (g / 2 * 4);
      pairs_of_codes(word, 0x000f000fu, kMinus128, s.scale[g / 2], s.offset[g / 2], w[2 * half],
                     w[2 * half + 1]);
    }
  }
};

struct TensorQ5_K {
  static constexpr DType kType = DType::q5_k;
  static constexpr int kElements = 32;
  static constexpr bool kMixed = true;
  static constexpr int kAhead = 2, kAheadOfMore = 2;
  uint4 header, q, bits;
  using Scales = SubBlockPairs;
  __device__ __forceinline__ void clear() { header = q = bits = kNoWords; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * static_cast<int>(sizeof(BlockQ5_K));
    load_reused_if(header, block, valid);
    load_reused_if(bits, block + 16 + unit % 2 * 16, valid);
    load_once_if(q, block + 48 + unit % 8 * 16, valid);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ4_K::at(unit, group); }
  __device__ __forceinline__ Scales scales(int unit) const { return sub_block_pairs(header, unit % 8 / 2); }
  __device__ __forceinline__ void pairs(const Scales& s, int unit, int g, uint32_t (&w)[4]) const {
    const int bit = unit % 8 / 2 * 2 + g / 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = g % 2 * 2 + half;
      const uint32_t high = (word_of(bits, i) >> bit & 0x01010101u) << 4;
      const uint32_t word = (word_of(q, i) >> (g / 2 * 4) & 0x0f0f0f0fu) | high;
      pairs_of_codes(word, 0x001f001fu, kMinus128, s.scale[g / 2], s.offset[g / 2], w[2 * half],
                     w[2 * half + 1]);
    }
  }
};

struct TensorQ6_K {
  static constexpr DType kType = DType::q6_k;
  static constexpr int kElements = 32;
  static constexpr bool kMixed = true;
  static constexpr int kAhead = 2, kAheadOfMore = 2;
  uint4 low, high;
  uint2 sub;  // the scales of the unit's half block
  uint16_t d;
  struct Scales {
    uint32_t scale[2];
  };
  __device__ __forceinline__ void clear() { low = high = kNoWords, sub = make_uint2(0, 0), d = 0; }
  __device__ __forceinline__ void load(const WeightRow& row, int unit, bool valid) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * kBodyQ6_K;
    const int h = unit % 8 / 4, first = unit % 2;
    load_once_if(low, block + h * 64 + unit % 4 / 2 * 32 + first * 16, valid);
    load_reused_if(high, block + 128 + h * 32 + first * 16, valid);
    load_reused_if(sub, block + 192 + h * 8, valid);
    load_reused_if(d, row.scales + unit / 8, valid);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ6_K::at(unit, group); }
  __device__ __forceinline__ Scales scales(int unit) const {
    const int shift = 8 * (unit % 2 + unit % 4 / 2 * 2);
    const float scale = half_to_float(d),
                low_scale = scale * static_cast<float>(static_cast<int8_t>(sub.x >> shift)),
                high_scale = scale * static_cast<float>(static_cast<int8_t>(sub.y >> shift));
    return {{pack_bf16(low_scale, low_scale), pack_bf16(high_scale, high_scale)}};
  }
  __device__ __forceinline__ void pairs(const Scales& s, int unit, int g, uint32_t (&w)[4]) const {
    const int bits = 2 * (unit % 4 / 2 + g / 2 * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = g % 2 * 2 + half;
      const uint32_t upper = (word_of(high, i) >> bits & 0x03030303u) << 4;
      const uint32_t word = (word_of(low, i) >> (g / 2 * 4) & 0x0f0f0f0fu) | upper;
      pairs_of_codes(word, 0x003f003fu, kMinus160, s.scale[g / 2], kMinusZeros, w[2 * half], w[2 * half + 1]);
    }
  }
};

inline bool has_tensor_unit(DType type) { return type == DType::bf16 || is_quantised(type); }
/// Calls with a value of the unit's type.
template <typename Call>
void with_tensor_unit(DType type, const Call& call) {
  switch (type) {
    case DType::bf16:
      return call(TensorBf16());
    case DType::q8_0:
      return call(TensorQ8_0());
    case DType::q4_0:
      return call(TensorQ4_0());
    case DType::q4_k:
      return call(TensorQ4_K());
    case DType::q5_k:
      return call(TensorQ5_K());
    case DType::q6_k:
      return call(TensorQ6_K());
    default:
      RWKVX_ASSERT(!"a type with a unit");
  }
}

}  // namespace rwkvx::cuda
