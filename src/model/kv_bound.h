#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "model/kv_options.h"
#include "ops/ops.h"
#include "tensor/buffer.h"

namespace rwkvx {

/// Which tokens a bounded KV store keeps: when max() tokens are stored, the last `window` stay, and of the
/// candidates before them, per head, those that KvRule puts first. Votes are the sums of the attention
/// weights that the window's queries give a token (SnapKV, arXiv 2404.14469): what text goes on needing. A
/// fact that nobody has asked for yet gets none, but its key points where few others do (KeyDiff, arXiv
/// 2504.15364). A token's score is the largest among its neighbours', so that runs of tokens stay together.
/// Of a long window every step()th query votes, which is a sample of all: some 256, as each has to look at
/// the whole store. They do so in groups as the window fills, so that no token pays for all.
class KvBound {
 public:
  static constexpr int64_t kVoters = 32;     ///< queries that vote together
  static constexpr int64_t kVotes = 256;     ///< of a window, or a little more
  static constexpr int64_t kNeighbours = 3;  ///< to either side

  KvBound(const KvOptions& options, int64_t heads, int64_t block, Ops& ops);
  KvBound(const KvBound& other);
  KvBound(KvBound&&) = default;
  KvBound& operator=(const KvBound& other);
  KvBound& operator=(KvBound&&) = default;

  int64_t max() const { return max_; }
  int64_t min() const { return min_; }
  int64_t candidates() const { return max_ - window_; }
  /// The query of the window's last token votes, and of every step()th before it.
  int64_t step() const { return std::max<int64_t>(1, window_ / kVotes); }
  /// Queries of the first `length` tokens that vote.
  int64_t voters(int64_t length) const;

  /// `q` [R, C] are the queries of the last tokens of kv.
  void vote(ConstView q, const KvChunks& kv);
  /// Which tokens of kv stay, [H, min] i32 in the backend's memory, rising; the votes start anew. kv has all
  /// max().
  Buffer keep(const KvChunks& kv);
  void clear();
  uint64_t bytes() const;

  /// For saved states: votes [H, candidates] real, the queries that wait [kVoters, C] real, and how many do.
  View votes() { return votes_; }
  ConstView votes() const { return votes_; }
  View waiting() { return waiting_; }
  ConstView waiting() const { return waiting_; }
  int64_t waiting_count() const { return waiting_count_; }
  /// In a store of `length` tokens. More than can be there, which files from before step() say, lose their
  /// vote.
  void set_waiting_count(int64_t count, int64_t length) {
    waiting_count_ = count <= voters(length) ? count : 0;
  }

 private:
  Ops* ops_;
  int64_t heads_, max_, min_, window_;
  KvRule rule_;
  Buffer votes_, waiting_;
  int64_t waiting_count_ = 0;
};

/// The `count` candidates that stay in one head, rising: half of them (rounded down) those with the highest
/// pooled votes, the rest the most distinct of the others, also pooled. With one list empty, all by the
/// other; of equals the later. NaN is 0. votes, distinctness [candidates].
std::vector<int32_t> staying(std::span<const float> votes, std::span<const float> distinctness, int64_t count,
                             int64_t neighbours);

}  // namespace rwkvx
