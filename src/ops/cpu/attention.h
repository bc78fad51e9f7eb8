#pragma once

#include <cstdint>
#include <vector>

#include "ops/cpu/packed_sums.h"
#include "ops/cpu/scratch.h"
#include "ops/cpu/tiles.h"
#include "ops/ops.h"

/// Top-k chunk attention, cut into independent tasks: one head of a range of one sequence's rows.
namespace rwkvx::cpu {

struct AttentionTask {
  const ChunkAttention* call;
  size_t sequence;
  int64_t head;
  int64_t begin, end;        ///< rows
  const PackedSums* packed;  ///< of the head, at least all chunks before that of the last row; or null
  /// For many queries, whose products are then of bfloat16; null: all is in float32.
  const TileUnit* tiles = nullptr;
};

/// Rows of a task at most. The more there are, the more of them choose the same chunk and share its keys;
/// what limits them is the running softmaxes' memory.
inline constexpr int64_t kMostTaskRows = 8192;

/// Running softmax of one query over the keys seen so far: the values' sum weighted with e^(score − highest),
/// and the sum of the weights. Sums over different keys merge exactly.
struct Softmax {
  float highest;
  float total;
  float values[kHeadSize];
};

/// Working memory of one thread.
struct AttentionScratch {
  Scratch softmax;   // Softmax of each row
  Scratch chosen;    // int32 [rows, top_k − 1]: chunks, −1 for none
  Scratch counts;    // int32 [chunks + 1]
  Scratch requests;  // int32 [rows · (top_k − 1)]: rows, ordered by the chunk that they chose
  Scratch best;      // float: gates and chunks of the best so far, vectors of queries
  Scratch scores;    // float [keys, queries]: of a vote
  Scratch values, wide_keys, tile_block;  // of attention by tiles
};

void attend(const AttentionTask& task, AttentionScratch& scratch);

}  // namespace rwkvx::cpu
