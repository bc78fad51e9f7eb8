#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// The sizes of a model. An RWKV-7 model has no sparse blocks.
struct ModelConfig {
  int64_t layers = 0;         ///< RWKV-7 blocks
  int64_t sparse_blocks = 0;  ///< top-k chunk attention blocks
  int64_t channels = 0;       ///< C = heads() · 64
  int64_t ffn = 0;            ///< channels inside the channel mix, usually 4 C
  int64_t vocab = 0;
  int64_t decay_rank = 0, rate_rank = 0, value_rank = 0, gate_rank = 0;  ///< of w, a, v and g
  int64_t chunk_size = 2048;                                             ///< tokens of an attention chunk
  int64_t top_k = 3;  ///< chunks a query sees, its own included
  /// Where the sparse blocks are: how many RWKV-7 blocks come before each, ascending. Empty: spread evenly.
  std::vector<int64_t> sparse_after;

  int64_t heads() const { return channels / 64; }
  bool operator==(const ModelConfig&) const = default;
};

struct BlockRef {
  bool sparse = false;
  int64_t index = 0;  ///< among the blocks of its kind
};

/// Order of the blocks: as sparse_after says. When it is empty, one sparse block comes after every
/// ⌊layers / sparse_blocks⌋ RWKV-7 blocks; RWKV-7 blocks that the division leaves over run after the last.
std::vector<BlockRef> block_order(const ModelConfig& config);

/// Sets sparse_after from text such as "2,4", one number for each sparse block; "" is the even spread, which
/// is empty however it is given. Errors: not such numbers, another count, descending, not from 1 to layers.
void place_sparse_blocks(ModelConfig& config, std::string_view text);
/// The text that place_sparse_blocks() takes; "" for the even spread.
std::string sparse_places(const ModelConfig& config);

}  // namespace rwkvx
