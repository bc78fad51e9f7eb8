#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "model/model.h"
#include "runtime/session.h"

namespace rwkvx {

/// Speed and memory at one context length.
struct LongSpeed {
  int64_t context = 0;  ///< tokens read
  int64_t prefilled = 0;
  double prefill_seconds = 0;     ///< for `prefilled` tokens
  int64_t batch = 1;              ///< sequences decoded together
  std::vector<double> decode_ms;  ///< of each token (of every sequence) then decoded, in order
  uint64_t resident_bytes = 0;    ///< of the process, after that
  uint64_t kv_bytes = 0;          ///< of KV pages and key sums, on disk too
  uint64_t file_bytes = 0;        ///< of those on disk
  uint64_t weight_bytes = 0;      ///< read for a token: all weights but the embedding's rows
  uint64_t selected_bytes = 0;    ///< of keys and values that the attention of one sequence's token reads
  uint64_t state_bytes = 0;       ///< of WKV states that one sequence's token reads and writes

  double prefill_tokens_per_second() const { return static_cast<double>(prefilled) / prefill_seconds; }
  double decode_quantile(double q) const;  ///< 0.5 the median, 1 the worst
};

struct LongOptions {
  int64_t decode = 128, batch = 1;
  /// Reading so many tokens from an empty state is timed, warm, the median of three times; 0: reading from
  /// the length before, once.
  int64_t prefill = 0;
};

/// Reads random tokens up to each of `lengths` (rising), and decodes more from a fork there: one sequence, or
/// a batch of them at once, each with tokens of its own.
/// `done` gets each result as it comes; `progress` counts tokens read and may throw to stop.
void measure_long_speed(std::shared_ptr<const Model> model, std::span<const int64_t> lengths,
                        const LongOptions& options, const std::function<void(const LongSpeed&)>& done,
                        const Progress& progress);

struct TurnOptions {
  int64_t prefill = 0, decode = 128;  ///< tokens of each turn
  int64_t rounds = 5;                 ///< turns of each state
};

/// Speed from each of `states` on, which take turns, so that all see the same load of the machine. They stay
/// as they are: forks read `prefill` random tokens (the median of the rounds counts) and decode `decode`.
std::vector<LongSpeed> measure_in_turn(std::shared_ptr<const Model> model, std::span<const Session> states,
                                       const TurnOptions& options, const Progress& progress);

/// Resident memory of the process now; 0 when unknown.
uint64_t resident_bytes();

}  // namespace rwkvx
