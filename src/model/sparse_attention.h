#pragma once

#include "model/batch.h"
#include "model/kv_store.h"
#include "model/weights.h"
#include "tensor/arena.h"

namespace rwkvx {

/// residual += W_output · top-k chunk attention(x). x [R, C] active is the block's ln1 output; stores: one
/// for each sequence, extended by its rows. The same function serves training, prefill and decode.
/// docs/math/sparse_attention.md.
void sparse_attention(Ops& ops, const AttentionWeights& w, const Batch& batch,
                      std::span<KvStore* const> stores, int64_t top_k, ConstView x, View residual,
                      Arena& arena);

}  // namespace rwkvx
