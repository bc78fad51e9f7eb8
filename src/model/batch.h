#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/ops.h"

namespace rwkvx {

/// How the rows of a forward pass divide into sequences.
struct Batch {
  std::span<const int64_t> offsets;      ///< S + 1
  std::span<const uint8_t> resets = {};  ///< [R] or empty: where not 0, WKV states are forgotten (training)
  int64_t rows() const { return offsets.back(); }
  int64_t sequences() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

inline constexpr float kNormEps = 1e-5f;
inline constexpr float kGroupNormEps = 64e-5f;  // 1e-5 · (head size divisor 8)², whatever the number of heads

}  // namespace rwkvx
