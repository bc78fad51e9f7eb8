#include "base/assert.h"
#include "tensor/blocks.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

void expand(const BlockQ8_0& b, float* to) {
  const float d = to_float(b.d);
  for (int k = 0; k < kSmallBlock; ++k) to[k] = d * static_cast<float>(b.q[k]);
}

void expand(const BlockQ4_0& b, float* to) {
  const float d = to_float(b.d);
  for (int k = 0; k < kSmallBlock / 2; ++k) {
    to[k] = d * static_cast<float>((b.q[k] & 15) - 8);
    to[k + kSmallBlock / 2] = d * static_cast<float>((b.q[k] >> 4) - 8);
  }
}

struct SubBlock {
  float scale, min;
};

template <typename Block>
SubBlock sub_block(const Block& b, int s) {
  return {to_float(b.d) * static_cast<float>(b.scales.sub_scale(s)),
          to_float(b.d_min) * static_cast<float>(b.scales.sub_min(s))};
}

void expand(const BlockQ4_K& b, float* to) {
  for (int s = 0; s < 8; ++s) {
    const SubBlock sub = sub_block(b, s);
    const uint8_t* q = b.q + s / 2 * 32;
    const int shift = s % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      to[32 * s + i] = sub.scale * static_cast<float>((q[i] >> shift) & 15) - sub.min;
    }
  }
}

void expand(const BlockQ5_K& b, float* to) {
  for (int s = 0; s < 8; ++s) {
    const SubBlock sub = sub_block(b, s);
    const uint8_t* q = b.q + s / 2 * 32;
    const int shift = s % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int five = ((q[i] >> shift) & 15) | (((b.high[i] >> s) & 1) << 4);
      to[32 * s + i] = sub.scale * static_cast<float>(five) - sub.min;
    }
  }
}

void expand(const BlockQ6_K& b, float* to) {
  const float d = to_float(b.d);
  for (int s = 0; s < 8; ++s) {  // of 32 elements, with two scales
    const int half = s / 4, j = s % 4;
    const uint8_t* low = b.low + 64 * half + 32 * (j % 2);
    const uint8_t* high = b.high + 32 * half;
    const float scales[2] = {d * static_cast<float>(b.scales[2 * s]),
                             d * static_cast<float>(b.scales[2 * s + 1])};
    for (int i = 0; i < 32; ++i) {
      const int six = ((low[i] >> (j / 2 * 4)) & 15) | (((high[i] >> (2 * j)) & 3) << 4);
      to[32 * s + i] = scales[i / 16] * static_cast<float>(six - 32);
    }
  }
}

template <typename Block>
void expand_all(const void* blocks, float* to, int64_t count) {
  constexpr int64_t kElements = sizeof(Block) > 2 * kSmallBlock ? kSuperBlock : kSmallBlock;
  const auto* b = static_cast<const Block*>(blocks);
  for (int64_t i = 0; i < count / kElements; ++i) expand(b[i], to + i * kElements);
}

bool is_finite(Float16 x) { return (x.bits & 0x7c00) != 0x7c00; }

template <typename Block>
int64_t count_blocks(const void* blocks, int64_t n) {
  const auto* b = static_cast<const Block*>(blocks);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    bool finite = is_finite(b[i].d);
    if constexpr (requires { b[i].d_min; }) finite = finite && is_finite(b[i].d_min);
    count += finite ? 0 : 1;
  }
  return count;
}

}  // namespace

bool is_computable(DType type) {
  return type == DType::q8_0 || type == DType::q4_0 || type == DType::q4_k || type == DType::q5_k ||
         type == DType::q6_k;
}

void dequantise(const void* blocks, DType type, float* to, int64_t count) {
  RWKVX_ASSERT(count % info(type).block_elements == 0);
  switch (type) {
    case DType::q8_0:
      return expand_all<BlockQ8_0>(blocks, to, count);
    case DType::q4_0:
      return expand_all<BlockQ4_0>(blocks, to, count);
    case DType::q4_k:
      return expand_all<BlockQ4_K>(blocks, to, count);
    case DType::q5_k:
      return expand_all<BlockQ5_K>(blocks, to, count);
    case DType::q6_k:
      return expand_all<BlockQ6_K>(blocks, to, count);
    default:
      RWKVX_ASSERT(!"a type that is_computable()");
  }
}

int64_t count_not_finite_blocks(const void* blocks, DType type, int64_t count) {
  const int64_t n = count / info(type).block_elements;
  switch (type) {
    case DType::q8_0:
      return count_blocks<BlockQ8_0>(blocks, n);
    case DType::q4_0:
      return count_blocks<BlockQ4_0>(blocks, n);
    case DType::q4_k:
      return count_blocks<BlockQ4_K>(blocks, n);
    case DType::q5_k:
      return count_blocks<BlockQ5_K>(blocks, n);
    case DType::q6_k:
      return count_blocks<BlockQ6_K>(blocks, n);
    default:
      return 0;
  }
}

}  // namespace rwkvx
