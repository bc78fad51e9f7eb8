#include "model/config.h"

namespace rwkvx {

std::vector<BlockRef> block_order(const ModelConfig& config) {
  std::vector<BlockRef> order;
  const int64_t every = config.sparse_blocks > 0 ? config.layers / config.sparse_blocks : config.layers + 1;
  int64_t placed = 0;
  for (int64_t i = 0; i < config.layers; ++i) {
    order.push_back({false, i});
    if ((i + 1) % every == 0 && placed < config.sparse_blocks) order.push_back({true, placed++});
  }
  return order;
}

}  // namespace rwkvx
