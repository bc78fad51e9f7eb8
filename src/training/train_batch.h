#pragma once

#include <cstdint>
#include <vector>

namespace rwkvx {

/// Rows to train on: the tokens of S sequences, one after another, each from an empty state.
struct TrainBatch {
  std::vector<int64_t> offsets{0};  ///< S + 1: sequence s owns rows offsets[s] .. offsets[s + 1]
  std::vector<int32_t> tokens;      ///< [R]
  std::vector<int32_t> targets;     ///< [R]; -1: this row's prediction does not count
  std::vector<float> weights;       ///< [R], of each row's loss; empty: 1
  std::vector<uint8_t> resets;      ///< [R]; 1: the WKV states forget what came before this row; empty: none

  /// [R] or empty: where the target was said before, in the row's sequence: the last row whose token says it;
  /// −1: nowhere, or it is not known. That row's own target before it leads to the mention before, and so on.
  std::vector<int64_t> earlier;

  /// Rows whose targets are an answer together: right when all of them are.
  struct Answer {
    int64_t begin = 0, end = 0;
    int32_t source = 0;  ///< of a mixture's sources
  };
  std::vector<Answer> answers;

  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
  int64_t sequences() const { return static_cast<int64_t>(offsets.size()) - 1; }
  /// Rows with a target: what a mean is taken over.
  int64_t counted() const {
    int64_t n = 0;
    for (const int32_t target : targets) n += target >= 0;
    return n;
  }
  /// Weights of the counted rows: what a weighted mean is taken over.
  double weight() const {
    if (weights.empty()) return static_cast<double>(counted());
    double sum = 0;
    for (size_t i = 0; i < targets.size(); ++i) sum += targets[i] >= 0 ? static_cast<double>(weights[i]) : 0;
    return sum;
  }
  void clear() { *this = TrainBatch(); }
};

}  // namespace rwkvx
