#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "ops/ops.h"

namespace rwkvx {

/// What a block's forward leaves in memory for its backward, beside its input. What is not there is computed
/// again, bit for bit the same. Numbers for each row:
///
///   part         of an RWKV-7 block                            of a sparse block
///   projections  r, k, v (not in block 0), low-rank middles    –
///   mixing       WKV states, what r reads from them: 3 C       q, k, v, attention's result: 4 C
///   second_half  the stream between the halves, C, and the channel mix's hidden layer, F
///   rest         all else, about 20 C: norms, shifts, operands; only when all parts stay
struct Keeping {
  bool projections = false, mixing = false, second_half = false, rest = false;
  bool operator==(const Keeping&) const = default;
};

/// The most valuable parts that fit into `bytes`, for blocks `lowest` and later of `order`: those that cost
/// most to compute again for their memory first.
std::vector<Keeping> choose_keeping(const std::vector<BlockRef>& order, size_t lowest,
                                    const ModelConfig& config, const Ops& ops, int64_t rows, uint64_t bytes);

}  // namespace rwkvx
