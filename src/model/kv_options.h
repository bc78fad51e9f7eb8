#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/file.h"
#include "ops/ops.h"

namespace rwkvx {

/// What a KV store keeps of a long sequence, and where.
enum class KvPolicy {
  full,     ///< everything, in memory
  host,     ///< everything, in the host's memory: a GPU holds what is read and written most
  disk,     ///< everything, in a temporary file: memory stays constant
  bounded,  ///< what recent queries looked at: memory and time stay constant
};
std::string_view name(KvPolicy policy);

/// By what a bounded store judges the tokens before its window.
enum class KvRule {
  both,   ///< half of what stays by votes, half by keys
  votes,  ///< the attention weights of the window's queries (SnapKV, arXiv 2404.14469), as RWKV-X does
  keys,   ///< how unlike the others their keys are (KeyDiff, arXiv 2504.15364)
};
std::string_view name(KvRule rule);

/// Which earlier chunks a query sees.
enum class Selection {
  mean,  ///< the top-k by q · mean(keys), as trained
  max,   ///< the top-k by the largest q · mean(keys) of the chunk's parts of KvOptions::part tokens
  full,  ///< all of them: full attention, at its cost
};

struct KvOptions {
  KvPolicy policy = KvPolicy::full;
  /// f32, bf16 or i8; nothing: Ops::kv_type() of the weights that make them.
  std::optional<DType> dtype;
  Path folder;  ///< of `disk`'s file; empty: see disk_folder()
  /// Of `host`: 10⁹ bytes of a GPU's memory for copies of chunks that were read lately, for a whole sequence.
  double near_gb = 2;

  // `bounded`: when `max` tokens are stored, `min` stay: the last `window`, and of those before the ones that
  // `rule` puts first. The numbers are RWKV-X's.
  int64_t max = 20000, window = 2000, min = 16000;
  KvRule rule = KvRule::both;

  Selection selection = Selection::mean;
  int64_t part = 64;  ///< tokens; a divisor of the chunk size, or no less than it

  /// Errors: bounds that leave no room, parts that do not divide the chunk size, no folder that a file can be
  /// made in.
  void check(int64_t chunk_size) const;
  /// `folder`, or temporary_folder().
  Path disk_folder() const;
  /// What a page keeps sums of: `part`, or 0 where it is not needed.
  int64_t part_of(int64_t chunk_size) const {
    return selection == Selection::max && part < chunk_size ? part : 0;
  }
  /// "full", "host:2", "disk:/tmp", "bounded:20000,2000,16000", "bounded:20000,2000,16000,votes".
  std::string policy_text() const;
  /// "mean", "max:64", "full".
  std::string selection_text() const;
};

/// full | host[:GB] | disk[:FOLDER] | bounded[:MAX,WINDOW,MIN[,RULE]]. Errors: anything else, bounds that
/// leave no room.
void parse_kv_policy(std::string_view text, KvOptions& options);
/// mean | max[:TOKENS] | full. Errors: anything else.
void parse_selection(std::string_view text, KvOptions& options);

}  // namespace rwkvx
