#pragma once

#include "ops/cuda/activation.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "tensor/blocks.h"

/// Weights of a row, a unit at a time: what one lane loads at once, in groups of 8 consecutive elements. The
/// layouts are those of GpuMatrix.
namespace rwkvx::cuda {

struct WeightRow {
  const uint8_t* body;
  const uint16_t* scales;
};

__device__ __forceinline__ uint4 load_quad(const uint8_t* p) {
  return load_once(reinterpret_cast<const uint4*>(p));
}
/// Byte i of 16.
__device__ __forceinline__ int byte_of(const uint4& quad, int i) {
  const uint32_t word = i < 8 ? (i < 4 ? quad.x : quad.y) : (i < 12 ? quad.z : quad.w);
  return static_cast<int>(word >> (8 * (i % 4)) & 0xff);
}

struct UnitF32 {
  static constexpr int kElements = 8;
  uint4 a, b;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    a = load_quad(row.body + static_cast<int64_t>(unit) * 32);
    b = load_quad(row.body + static_cast<int64_t>(unit) * 32 + 16);
  }
  __device__ __forceinline__ static int at(int unit, int) { return unit * 8; }
  __device__ __forceinline__ void group(int, float (&w)[8]) const {
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = __uint_as_float(words[i]);
  }
};

struct UnitBf16 {
  static constexpr int kElements = 8;
  uint4 a;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    a = load_quad(row.body + static_cast<int64_t>(unit) * 16);
  }
  __device__ __forceinline__ static int at(int unit, int) { return unit * 8; }
  __device__ __forceinline__ void group(int, float (&w)[8]) const { unpack8(a, Bf16(), w); }
};

struct UnitF16 {
  static constexpr int kElements = 8;
  uint4 a;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    a = load_quad(row.body + static_cast<int64_t>(unit) * 16);
  }
  __device__ __forceinline__ static int at(int unit, int) { return unit * 8; }
  __device__ __forceinline__ void group(int, float (&w)[8]) const { unpack8(a, Fp16(), w); }
};

/// Half a block.
struct UnitQ8_0 {
  static constexpr int kElements = 16;
  uint4 q;
  float d;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    q = load_quad(row.body + static_cast<int64_t>(unit) * 16);
    d = half_to_float(row.scales[unit / 2]);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return unit * 16 + group * 8; }
  __device__ __forceinline__ void group(int g, float (&w)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) w[i] = d * static_cast<float>(static_cast<int8_t>(byte_of(q, 8 * g + i)));
  }
};

struct UnitQ4_0 {
  static constexpr int kElements = 32;
  uint4 q;
  float d;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    q = load_quad(row.body + static_cast<int64_t>(unit) * 16);
    d = half_to_float(row.scales[unit]);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return unit * 32 + group * 8; }
  __device__ __forceinline__ void group(int g, float (&w)[8]) const {
    const int shift = g / 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      w[i] = d * static_cast<float>((byte_of(q, 8 * (g % 2) + i) >> shift & 15) - 8);
    }
  }
};

/// Scale and minimum s of the 12 bytes of a K block, as SubScales.
template <typename Byte>
__device__ __forceinline__ int2 scale_and_min(const Byte& byte, int s) {
  if (s < 4) return make_int2(byte(s) & 63, byte(s + 4) & 63);
  return make_int2((byte(s + 4) & 15) | (byte(s - 4) >> 6 << 4), byte(s + 4) >> 4 | (byte(s) >> 6 << 4));
}
__device__ __forceinline__ float2 sub_scale_and_min(const uint4& header, int s) {
  const float d = half_to_float(static_cast<uint16_t>(header.x)),
              d_min = half_to_float(static_cast<uint16_t>(header.x >> 16));
  const int2 sub = scale_and_min([&](int i) { return byte_of(header, 4 + i); }, s);
  return make_float2(d * static_cast<float>(sub.x), d_min * static_cast<float>(sub.y));
}

/// An eighth of a K block: 16 bytes, whose low halves are of one sub-block and whose high halves of the next.
struct UnitQ4_K {
  static constexpr int kElements = 32;
  uint4 q;
  float2 low, high;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * static_cast<int>(sizeof(BlockQ4_K));
    const uint4 header = __ldg(reinterpret_cast<const uint4*>(block));
    q = load_quad(block + 16 + unit % 8 * 16);
    low = sub_scale_and_min(header, unit % 8 / 2 * 2);
    high = sub_scale_and_min(header, unit % 8 / 2 * 2 + 1);
  }
  __device__ __forceinline__ static int at(int unit, int group) {
    return unit / 8 * 256 + unit % 8 / 2 * 64 + unit % 2 * 16 + group / 2 * 32 + group % 2 * 8;
  }
  __device__ __forceinline__ void group(int g, float (&w)[8]) const {
    const float2 sub = g < 2 ? low : high;
    const int shift = g / 2 * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      w[i] = sub.x * static_cast<float>(byte_of(q, 8 * (g % 2) + i) >> shift & 15) - sub.y;
    }
  }
};

struct UnitQ5_K {
  static constexpr int kElements = 32;
  uint4 q, bits;
  float2 low, high;
  int first;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * static_cast<int>(sizeof(BlockQ5_K));
    const uint4 header = __ldg(reinterpret_cast<const uint4*>(block));
    bits = __ldg(reinterpret_cast<const uint4*>(block + 16 + unit % 2 * 16));
    q = load_quad(block + 48 + unit % 8 * 16);
    first = unit % 8 / 2 * 2;
    low = sub_scale_and_min(header, first);
    high = sub_scale_and_min(header, first + 1);
  }
  __device__ __forceinline__ static int at(int unit, int group) { return UnitQ4_K::at(unit, group); }
  __device__ __forceinline__ void group(int g, float (&w)[8]) const {
    const float2 sub = g < 2 ? low : high;
    const int shift = g / 2 * 4, s = first + g / 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = 8 * (g % 2) + i;
      w[i] = sub.x * static_cast<float>((byte_of(q, k) >> shift & 15) | (byte_of(bits, k) >> s & 1) << 4) -
             sub.y;
    }
  }
};

/// Without its d a block is 208 bytes: low, high, scales.
inline constexpr int kBodyQ6_K = 208;
struct UnitQ6_K {
  static constexpr int kElements = 32;
  uint4 low, high;
  float2 scale;
  int j;
  __device__ __forceinline__ void load(const WeightRow& row, int unit) {
    const uint8_t* block = row.body + static_cast<int64_t>(unit / 8) * kBodyQ6_K;
    const int h = unit % 8 / 4, first = unit % 2;
    j = unit % 4 / 2;
    low = load_quad(block + h * 64 + j * 32 + first * 16);
    high = __ldg(reinterpret_cast<const uint4*>(block + 128 + h * 32 + first * 16));
    const auto* scales = reinterpret_cast<const int8_t*>(block + 192) + h * 8 + first;
    const float d = half_to_float(row.scales[unit / 8]);
    scale = make_float2(d * static_cast<float>(scales[j * 2]), d * static_cast<float>(scales[(j + 2) * 2]));
  }
  __device__ __forceinline__ static int at(int unit, int group) {
    return unit / 8 * 256 + unit % 8 / 4 * 128 + unit % 4 / 2 * 32 + unit % 2 * 16 + group / 2 * 64 +
           group % 2 * 8;
  }
  __device__ __forceinline__ void group(int g, float (&w)[8]) const {
    const float d = g < 2 ? scale.x : scale.y;
    const int shift = g / 2 * 4, bits = 2 * (j + g / 2 * 2);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int k = 8 * (g % 2) + i;
      w[i] = d *
             static_cast<float>(((byte_of(low, k) >> shift & 15) | (byte_of(high, k) >> bits & 3) << 4) - 32);
    }
  }
};

/// Calls with a value of the unit's type.
template <typename Call>
void with_unit(DType type, const Call& call) {
  switch (type) {
    case DType::f32:
      return call(UnitF32());
    case DType::bf16:
      return call(UnitBf16());
    case DType::f16:
      return call(UnitF16());
    case DType::q8_0:
      return call(UnitQ8_0());
    case DType::q4_0:
      return call(UnitQ4_0());
    case DType::q4_k:
      return call(UnitQ4_K());
    case DType::q5_k:
      return call(UnitQ5_K());
    case DType::q6_k:
      return call(UnitQ6_K());
    default:
      RWKVX_ASSERT(!"a type that prepare() takes");
  }
}

/// Where row `o` lies.
struct WeightRows {
  const uint8_t* body;
  const uint16_t* scales;
  int64_t row_bytes, row_scales;
  __device__ __forceinline__ WeightRow row(int64_t o) const {
    return {body + o * row_bytes, scales + o * row_scales};
  }
};

/// Rows [out], not input_major.
inline WeightRows weight_rows(const GpuMatrix& m) {
  const DTypeInfo& type = info(m.type);
  const int64_t blocks = m.in / type.block_elements;
  const bool split = m.scales != nullptr;
  return {static_cast<const uint8_t*>(m.body), m.scales, blocks * (type.block_bytes - (split ? 2 : 0)),
          split ? blocks : 0};
}

}  // namespace rwkvx::cuda
