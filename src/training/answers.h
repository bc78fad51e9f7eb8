#pragma once

#include <cstdint>
#include <map>
#include <span>

#include "training/train_batch.h"

namespace rwkvx {

/// How many answers are right: teacher-forced, each of their tokens likelier than any other.
struct AnswerCount {
  int64_t right = 0, all = 0;
  double share() const { return static_cast<double>(right) / static_cast<double>(all); }
};

/// By the sources of a mixture.
using AnswerCounts = std::map<int32_t, AnswerCount>;

/// hits: [R] of the batch's rows. A row that does not count (weight 0) is wrong.
inline void count_answers(const TrainBatch& batch, std::span<const uint8_t> hits, AnswerCounts& counts) {
  for (const TrainBatch::Answer& answer : batch.answers) {
    AnswerCount& count = counts[answer.source];
    bool right = true;
    for (int64_t row = answer.begin; row < answer.end; ++row)
      right = right && hits[static_cast<size_t>(row)] != 0;
    ++count.all;
    count.right += right ? 1 : 0;
  }
}

inline AnswerCount sum_of(const AnswerCounts& counts) {
  AnswerCount sum;
  for (const auto& [source, count] : counts) {
    sum.right += count.right;
    sum.all += count.all;
  }
  return sum;
}

}  // namespace rwkvx
