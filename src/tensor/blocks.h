#pragma once

#include <cstdint>

#include "tensor/half.h"

/// GGUF's quantised blocks as they lie in files, consecutive along a row (ggml/src/ggml-common.h). Elements
/// are given by k, their place in the block. Files align them to two bytes only.
namespace rwkvx {

inline constexpr int kSmallBlock = 32;   ///< elements of a Q8_0 or Q4_0 block, and of most sub-blocks
inline constexpr int kSuperBlock = 256;  ///< elements of a K block

/// x[k] = d · q[k]
struct BlockQ8_0 {
  Float16 d;
  int8_t q[kSmallBlock];
};

/// x[k] = d · (q[k] − 8); element k < 16 is the low half of byte k, element k + 16 its high half.
struct BlockQ4_0 {
  Float16 d;
  uint8_t q[kSmallBlock / 2];
};

/// 8 scales and 8 minima of sub-blocks of 32, 6 bits each: see sub_scale() and sub_min().
struct SubScales {
  uint8_t bytes[12];

  uint8_t sub_scale(int s) const {
    return static_cast<uint8_t>(s < 4 ? bytes[s] & 63 : (bytes[s + 4] & 15) | ((bytes[s - 4] >> 6) << 4));
  }
  uint8_t sub_min(int s) const {
    return static_cast<uint8_t>(s < 4 ? bytes[s + 4] & 63 : (bytes[s + 4] >> 4) | ((bytes[s] >> 6) << 4));
  }
  /// For s rising from 0; both below 64.
  void set(int s, uint8_t scale, uint8_t min) {
    if (s < 4) {
      bytes[s] = scale;
      bytes[s + 4] = min;
    } else {
      bytes[s + 4] = static_cast<uint8_t>((scale & 15) | (min << 4));
      bytes[s - 4] = static_cast<uint8_t>(bytes[s - 4] | ((scale >> 4) << 6));
      bytes[s] = static_cast<uint8_t>(bytes[s] | ((min >> 4) << 6));
    }
  }
};

/// Sub-block s = ⌊k / 32⌋: x[k] = d · scale[s] · q[k] − d_min · min[s]. Bytes 32 p .. 32 p + 32 of q hold
/// sub-block 2 p in their low halves and 2 p + 1 in their high halves.
struct BlockQ4_K {
  Float16 d, d_min;
  SubScales scales;
  uint8_t q[kSuperBlock / 2];
};

/// As Q4_K with a fifth bit: that of element i of sub-block s is bit s of high[i].
struct BlockQ5_K {
  Float16 d, d_min;
  SubScales scales;
  uint8_t high[kSmallBlock];
  uint8_t q[kSuperBlock / 2];
};

/// x[k] = d · scale[⌊k / 16⌋] · (q[k] − 32). In half h of 128 elements, element 32 j + i (i < 32) has its low
/// four bits in half ⌊j / 2⌋ (low, high) of byte low[64 h + 32 (j mod 2) + i] and its two high bits in bits
/// 2 j, 2 j + 1 of high[32 h + i].
struct BlockQ6_K {
  uint8_t low[kSuperBlock / 2];
  uint8_t high[kSuperBlock / 4];
  int8_t scales[kSuperBlock / 16];
  Float16 d;
};

static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_K) == 144 &&
              sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);

}  // namespace rwkvx
