#pragma once

#include <span>
#include <vector>

#include "ops/cpu/packed_blocks.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/thread_pool.h"
#include "ops/cpu/tile_weights.h"
#include "ops/cpu/tiles.h"
#include "ops/ops.h"

namespace rwkvx::cpu {

/// Products of many bf16 rows by tiles. Weights are used as the file holds them (bf16, f16) or as
/// pack_blocks() made them: a block of outputs is brought into the order of tiles, in a thread's own memory,
/// and multiplied with all rows, which have been brought into it before.
class TileRows {
 public:
  struct Call {
    const LinearCall* linear;
    const PackedBlocks* blocks;  ///< of quantised weights
  };
  TileRows(ThreadPool& pool, const TileUnit& unit);
  const TileUnit& unit() const { return unit_; }
  /// x is bf16, weights are bf16, f16 or quantised.
  static bool can(const LinearCall& call);
  /// Whether run() takes it.
  static bool can_norm(const NormShift& norm);
  /// norm: each call's x is one of norm->y, and computed on the way (Ops::norm_shift_linear()).
  void run(std::span<const Call> calls, const NormShift* norm = nullptr);

 private:
  /// A block of one call's results.
  struct Part {
    Call call;
    const BFloat16* x;  ///< of its rows
    int64_t row, rows, out, outs;
  };
  /// Up to 32 rows of a call's x, to be copied to `to` as TileStrip::a.
  struct Copy {
    const LinearCall* call;
    int64_t row;
    BFloat16* to;
  };
  struct ThreadState {
    Scratch strip, sums, rows;
  };
  static void copy_rows(const Copy& copy);
  void prepare_inputs(std::span<const Call> calls, const NormShift* norm);
  void run_part(const Part& part, ThreadState& thread) const;

  ThreadPool& pool_;
  const TileUnit& unit_;
  FillStrip fill_;
  Scratch inputs_;
  std::vector<BFloat16*> inputs_of_calls_;
  std::vector<Copy> copies_;
  std::vector<Part> parts_;
  std::vector<ThreadState> threads_;
};

}  // namespace rwkvx::cpu
