#pragma once

#include <vector>

#include "ops/ops.h"

/// Key sums of chunks as 8-bit integers, from which gates are bounded.
namespace rwkvx::cpu {

/// With fewer chunks all gates cost less than bounds and those above them.
inline constexpr int64_t kFewChunks = 256;
/// Fewer queries do not pay for packing sums that nobody keeps for the next ones.
inline constexpr int64_t kRowsWorthPacking = 32;

/// Sums s of one head, of chunks or of their parts: s = m + σ·i + ε, i of 8 bits, m the mean of many.
struct PackedSums {
  struct alignas(kHeadSize) Row {
    int8_t i[kHeadSize];
  };
  int64_t count = 0;    // sums packed; the arrays have kPackedMore, so that vectors may begin at the last
  int64_t in_mean = 0;  // as many as the mean was made of
  std::vector<Row> rows;
  std::vector<int32_t> totals;  // Σ i
  std::vector<float> scales;    // σ
  std::vector<float> norms;     // ‖s − m‖, rounded up
  std::vector<float> errors;    // ‖ε‖, rounded up
  alignas(kHeadSize) float mean[kHeadSize];
  float mean_norm = 0;
};
inline constexpr int64_t kPackedMore = 16;

/// Of all heads.
class PackedHeads final : public KvDerived {
 public:
  explicit PackedHeads(int64_t heads) : heads_(static_cast<size_t>(heads)) {}
  PackedSums& head(int64_t head) { return heads_[static_cast<size_t>(head)]; }
  void clear(int64_t heads) {
    heads_.resize(static_cast<size_t>(heads));
    for (PackedSums& head : heads_) head.count = head.in_mean = 0;
  }

 private:
  std::vector<PackedSums> heads_;
};

/// Packs the sums of chunks up to `chunks`, which are full, as far as they are not yet. Once there are twice
/// as many as the mean was made of, all are packed anew.
void pack_sums(const KvChunks& kv, int64_t head, int64_t chunks, PackedSums& packed);

}  // namespace rwkvx::cpu
