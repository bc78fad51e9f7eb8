#pragma once

#include "tensor/blocks.h"

/// The values of one block. Always inlined, so that a caller that is compiled for an instruction set gets
/// loops that use it.
#define RWKVX_INLINE [[gnu::always_inline]] inline

namespace rwkvx {

RWKVX_INLINE void expand(const BlockQ8_0& b, float* to) {
  const float d = to_float(b.d);
  for (int k = 0; k < kSmallBlock; ++k) to[k] = d * static_cast<float>(b.q[k]);
}

RWKVX_INLINE void expand(const BlockQ4_0& b, float* to) {
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
RWKVX_INLINE SubBlock sub_block(const Block& b, int s) {
  return {to_float(b.d) * static_cast<float>(b.scales.sub_scale(s)),
          to_float(b.d_min) * static_cast<float>(b.scales.sub_min(s))};
}

RWKVX_INLINE void expand(const BlockQ4_K& b, float* to) {
  for (int s = 0; s < 8; ++s) {
    const SubBlock sub = sub_block(b, s);
    const uint8_t* q = b.q + s / 2 * 32;
    const int shift = s % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      to[32 * s + i] = sub.scale * static_cast<float>((q[i] >> shift) & 15) - sub.min;
    }
  }
}

RWKVX_INLINE void expand(const BlockQ5_K& b, float* to) {
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

RWKVX_INLINE void expand(const BlockQ6_K& b, float* to) {
  const float d = to_float(b.d);
  for (int s = 0; s < 16; ++s) {
    const int half = s / 8, j = s / 2 % 4, first = s % 2 * 16;
    const uint8_t* low = b.low + 64 * half + 32 * (j % 2) + first;
    const uint8_t* high = b.high + 32 * half + first;
    const float scale = d * static_cast<float>(b.scales[s]);
    for (int i = 0; i < 16; ++i) {
      const int six = ((low[i] >> (j / 2 * 4)) & 15) | (((high[i] >> (2 * j)) & 3) << 4);
      to[16 * s + i] = scale * static_cast<float>(six - 32);
    }
  }
}

}  // namespace rwkvx

#undef RWKVX_INLINE
