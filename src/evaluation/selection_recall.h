#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/forwarding_ops.h"

namespace rwkvx {

/// What the rules see of one head's complete chunk: its keys [B, N] as float32.
struct ChunkKeys {
  const float* keys;
  int64_t count;
};

/// A way to choose chunks: the score of a chunk for a query q [N]; the largest are chosen.
struct SelectionRule {
  std::string name;
  std::string description;
  /// Statistics that are kept of a chunk, as floats: what the rule costs per query, chunk and head is one
  /// multiplication with each.
  std::function<int64_t(int64_t chunk_size)> kept_floats;
  std::function<double(const float* q, const ChunkKeys& chunk)> score;
};
/// mean, and what might see more than it.
std::vector<SelectionRule> selection_rules();

/// How much of full attention's weight on earlier chunks lies in the chunks that a rule chooses.
struct SelectionRecall {
  struct Cell {
    double outside = 0;            ///< Σ over queries: full attention's weight on earlier chunks
    std::vector<double> recalled;  ///< Σ: of that, in the chunks of each rule
    std::vector<int64_t> first;    ///< queries whose chunk of most weight the rule chooses
    double oracle = 0;             ///< Σ: in the chunks of most weight, the best that any rule can do
    int64_t queries = 0;
  };
  int64_t layers = 0, heads = 0;
  std::vector<Cell> cells;  ///< [layers · heads], layer-major
};

/// Passes everything on to `to` and looks at the queries at every `stride`th position from `from` on.
/// Backends whose memory is the host's only. Slow: every query visits all keys.
class SelectionProbe final : public ForwardingOps {
 public:
  SelectionProbe(std::shared_ptr<Ops> to, int64_t layers, int64_t from, int64_t stride);
  void chunk_attention(const ChunkAttention& call) override;
  const SelectionRecall& recall() const { return recall_; }

 private:
  void look(const ChunkAttention& call, int64_t row, int64_t position, int64_t head);

  int64_t layers_, from_, stride_, layer_ = 0;
  std::vector<SelectionRule> rules_;
  SelectionRecall recall_;
};

}  // namespace rwkvx
