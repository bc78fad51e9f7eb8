#include "model/sparse_attention.h"

namespace rwkvx {

void sparse_attention(Ops& ops, const AttentionWeights& w, const Batch& batch,
                      std::span<KvStore* const> stores, int64_t top_k, ConstView x, View residual,
                      Arena& arena) {
  const int64_t R = x.dim(0), C = x.dim(1);
  const View q = arena.take(ops.real(), {R, C}), k = arena.take(ops.real(), {R, C}),
             v = arena.take(ops.real(), {R, C});
  ops.linear(std::array<LinearCall, 3>{{{x, &w.receptance, q}, {x, &w.key, k}, {x, &w.value, v}}});

  std::vector<KvChunks> chunks;
  for (size_t s = 0; s < stores.size(); ++s) {
    stores[s]->extend(batch.offsets[s + 1] - batch.offsets[s]);
    chunks.push_back(stores[s]->chunks());
  }
  ops.kv_append(k, v, batch.offsets, chunks);
  const View read = arena.take(ops.active(), {R, C});
  ops.chunk_attention({.q = q, .offsets = batch.offsets, .kv = chunks, .top_k = top_k, .y = read});
  ops.linear({.x = read, .w = &w.output, .y = residual, .add = true});
}

}  // namespace rwkvx
