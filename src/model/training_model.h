#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "model/longce.h"
#include "model/parameters.h"
#include "model/training_block.h"

namespace rwkvx {

/// Sequences to learn from, each from an empty state; their rows lie one after another.
struct TrainingBatch {
  std::span<const int32_t> tokens;      ///< [R]
  std::span<const int32_t> targets;     ///< [R]: the token that follows; −1: not counted
  std::span<const int64_t> offsets;     ///< [S + 1]
  std::span<const float> weights = {};  ///< [R] of the losses, or empty: 1
  std::span<const uint8_t> resets =
      {};  ///< [R] or empty; where not 0, WKV states are forgotten before the row
  /// [R] or empty: the last row whose token is an earlier mention of this row's target, or −1; the target of
  /// the row before that one leads to the mention before.
  std::span<const int64_t> earlier = {};
};

/// Teaches chunk attention where to look, docs/math/sparse_attention.md.
struct GateLossOptions {
  float weight = 0;       ///< λ of the selection loss; 0: off
  int64_t samples = 512;  ///< queries of a batch, of those that have an earlier chunk
  uint64_t seed = 0;      ///< of the choice
  /// Rows are sampled as often as the weights of their losses say, and not all alike: where few tokens need
  /// what is far, the gate is taught by those.
  bool by_weight = false;
  /// Of the pointing loss, for the sampled queries whose targets were said before; 0: off. With it, the
  /// selection loss follows those mentions too.
  float pointing = 0;
};

inline constexpr uint64_t kActivationBytes = uint64_t{4'000'000'000};
inline constexpr int64_t kSliceRows = 2048;

struct TrainingOptions {
  /// The loss is Σ weight · cross entropy / divisor; 0: R. With gradients accumulated over several batches,
  /// the sum of their R.
  double divisor = 0;
  float l2wrap = 1e-4f;
  std::optional<LongCe> longce;
  GateLossOptions gate;
  /// Memory for what blocks keep for their backward beside their input: choose_keeping(). The rest is
  /// computed again, with the same result.
  uint64_t activation_bytes = kActivationBytes;
  int64_t slice_rows = kSliceRows;  ///< slices_of()
};

/// How well each row predicts its target.
struct RowScores {
  std::vector<float> losses;  ///< [R] cross entropy; 0 where there is no target
  std::vector<uint8_t> hits;  ///< [R] 1: no token is likelier than the target
};

struct TrainingResult {
  double loss = 0;            ///< with weights; without L2Wrap and gate loss
  double cross_entropy = 0;   ///< mean over the counted rows, not weighted
  int64_t counted = 0;        ///< rows with a target
  std::vector<float> losses;  ///< [R], not weighted
  std::vector<uint8_t> hits;  ///< [R] 1: no token is likelier than the target
  std::vector<float> longce;  ///< [R] LongCE weights; empty without LongCE
  double gate_loss = 0;       ///< mean over samples, heads and blocks, without λ
  double gate_hits = 0;       ///< how often the gate's first chunk is the first by attention's mass
  double pointing_loss = 0;   ///< mean over taught queries, heads and blocks, without λ
  double pointing_hits = 0;   ///< how often no key scores higher than a mention
};

/// Loss and gradients of a model whose weights are Parameters. Calls on one Ops instance must not overlap.
class TrainingModel {
 public:
  explicit TrainingModel(Parameters& parameters);

  /// Adds the gradients of the loss to those of the parameters. Backward stops below the last block that has
  /// something to train. Errors: a token or target outside the vocabulary, by position.
  TrainingResult forward_backward(const TrainingBatch& batch, const TrainingOptions& options);

  /// No gradients.
  RowScores scores(const TrainingBatch& batch);
  std::vector<float> losses(const TrainingBatch& batch) { return scores(batch).losses; }

  /// Most memory that passes have used for activations so far.
  uint64_t activation_bytes() const { return arena_.reserved_bytes(); }

 private:
  struct Pass;
  Ops& ops() const { return parameters_.ops(); }
  void check(const TrainingBatch& batch) const;
  Pass begin(const TrainingBatch& batch, int64_t slice_rows);
  void run_blocks(Pass& pass, const std::vector<Keeping>& keeping);
  void blocks_backward(Pass& pass, const TrainingOptions& options, View d, TrainingResult& result);
  /// Scores of all rows; with d, gradients too: of the head, and d [R, C] of the normed rows.
  RowScores head(Pass& pass, ConstView normed, std::span<const float> weights, double divisor, float l2wrap,
                 View d);
  std::vector<float> longce_weights(const TrainingBatch& batch, const LongCe& longce,
                                    std::span<const float> full);

  Parameters& parameters_;
  std::vector<BlockRef> order_;
  size_t lowest_ = 0;       // in order_: nothing below has a gradient
  bool embedding_ = false;  // the embedding or ln0 have one
  Arena arena_;
};

}  // namespace rwkvx
