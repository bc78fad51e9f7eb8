#include "model/expand.h"

#include "base/error.h"
#include "model/weights.h"

namespace rwkvx {

Checkpoint expand(const Checkpoint& source, const Expansion& expansion) {
  const int64_t sparse_blocks = expansion.sparse_blocks;
  const std::string file = source.path().string();
  if (source.config.sparse_blocks > 0) {
    fail("{}: the model has {} sparse blocks already; expand a plain RWKV-7 model", file,
         source.config.sparse_blocks);
  }
  if (sparse_blocks < 1 || sparse_blocks > source.config.layers) {
    fail("{}: between 1 and {} sparse blocks fit among its {} RWKV-7 blocks, not {} (--sparse-blocks)", file,
         source.config.layers, source.config.layers, sparse_blocks);
  }
  check_tensors(source);
  Checkpoint result = source;
  result.config.sparse_blocks = sparse_blocks;
  result.config.chunk_size = expansion.chunks.chunk_size.value_or(ModelConfig().chunk_size);
  result.config.top_k = expansion.chunks.top_k.value_or(ModelConfig().top_k);
  place_sparse_blocks(result.config, expansion.sparse_after);
  result.chunk_settings_recorded = true;
  int64_t before = 0;  // the RWKV-7 block that the next sparse block follows
  for (const BlockRef& block : block_order(result.config)) {
    if (!block.sparse) {
      before = block.index;
      continue;
    }
    const std::string from = fmt::format("blocks.{}.", before), to = fmt::format("moba.{}.", block.index);
    for (const TensorSpec& spec : tensor_list(result.config)) {
      if (!spec.name.starts_with(to)) continue;
      const std::string tail = spec.name.substr(to.size());
      const ConstView data = result.catalog.find(from + tail)->data;
      if (expansion.copy_outputs || (tail != "att.output.weight" && tail != "ffn.value.weight")) {
        result.catalog.add(spec.name, data);
        continue;
      }
      const auto zero = std::make_shared<Buffer>(data.dtype(), data.shape());
      result.catalog.add(spec.name, zero->view());
      result.catalog.keep(zero);
    }
  }
  return result;
}

}  // namespace rwkvx
