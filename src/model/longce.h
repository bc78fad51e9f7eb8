#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace rwkvx {

/// LongCE (arXiv 2410.23771): a token's loss is weighted with min(e^(loss from a truncated context − loss
/// from the full one), gamma). docs/math/losses.md.
struct LongCe {
  int64_t window = 4096;  ///< a scored token sees between window and window + stride tokens
  int64_t stride = 1024;
  float gamma = 5;
};
inline constexpr LongCe kPaperLongCe{4096, 1024, 5};
inline constexpr LongCe kRwkvxLongCe{4000, 4000, 10};

/// A truncated context: rows begin .. end, run from an empty state, of which scored .. end count.
struct TruncatedContext {
  int64_t begin, scored, end;
};

/// All truncated contexts of the sequences. Rows that none scores keep weight 1.
std::vector<TruncatedContext> truncated_contexts(std::span<const int64_t> offsets, const LongCe& longce);

}  // namespace rwkvx
