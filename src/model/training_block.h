#pragma once

#include <vector>

#include "model/block.h"
#include "model/keeping.h"
#include "model/slices.h"

namespace rwkvx {

/// What the blocks of a training pass share.
struct TrainingRows {
  Ops& ops;
  Arena& arena;
  const ModelConfig& config;
  Batch batch;
  std::vector<Slice> slices;
  View x;                  ///< [R, C] real, the residual stream
  View v_first, dv_first;  ///< [R, C] real
};

/// One block's forward from empty states, x in place, without anything for a backward.
void rwkv_forward(const TrainingRows& rows, const RwkvBlockWeights& w, bool first_block);
void sparse_forward(const TrainingRows& rows, const SparseBlockWeights& w);

/// What the rows of a block's shifts and states are where a slice begins within a sequence.
struct SliceStarts {
  View time_shift, channel_shift;  ///< [slices, C] real
  View wkv;                        ///< [slices, H, N, N] real, or empty
};

/// One RWKV-7 block of a pass, forward with what `keeping` says left in the arena until the caller's scope
/// ends, and backward.
class RwkvTrainingBlock {
 public:
  /// x becomes the block's output.
  void forward(const TrainingRows& rows, const RwkvBlockWeights& w, bool first_block, Keeping keeping);
  /// d [R, C] as in rwkv_block_backward().
  void backward(const TrainingRows& rows, const RwkvBlockWeights& w, const RwkvBlockGradients& dw, View d);

 private:
  RwkvBlockKept memory(const Slice& slice) const;
  RwkvBlockKept again(const TrainingRows& rows, const RwkvBlockWeights& w, size_t slice) const;

  bool first_block_ = false;
  Keeping keeping_;
  View x_;  // [R, C] real: the input
  SliceStarts starts_;
  RwkvBlockKept all_;                  // all rows; what `keeping` names
  std::vector<RwkvBlockKept> slices_;  // with Keeping::rest
};

/// One sparse block. Attention runs over all rows at once, the second half slice by slice.
class SparseTrainingBlock {
 public:
  void forward(const TrainingRows& rows, const SparseBlockWeights& w, Keeping keeping);
  void backward(const TrainingRows& rows, const SparseBlockWeights& w, const SparseBlockGradients& dw,
                const AttentionTeaching& teaching, View d);

 private:
  SecondHalfKept memory(const Slice& slice) const;

  Keeping keeping_;
  View x_;
  SliceStarts starts_;
  AttentionKept attention_;
  SecondHalfKept all_;
  std::vector<SecondHalfKept> slices_;
};

}  // namespace rwkvx
