#pragma once

#include "model/batch.h"
#include "model/kv_store.h"
#include "model/weights.h"
#include "ops/training.h"
#include "tensor/arena.h"

namespace rwkvx {

/// What the parts of sparse attention hand on, [R, C]: `read` is what was read from the chunks.
struct AttentionRows {
  View q, k, v;  // real
  View read;     // active
};
AttentionRows attention_rows(Ops& ops, int64_t rows, int64_t channels, Arena& arena);

/// Top-k chunk attention in three parts, of which the second depends on how long the sequences are: the
/// projections of the norm of x [R, C] real, with room for it, [R, C] active; reading, with a store for each
/// sequence, which is extended by its rows; residual += W_output · read. The same functions serve prefill and
/// decode. docs/math/sparse_attention.md.
void attention_inputs(Ops& ops, const NormWeights& ln, const AttentionWeights& w, ConstView x, View normed,
                      const AttentionRows& rows);
void attention_read(Ops& ops, const Batch& batch, std::span<KvStore* const> stores, int64_t top_k,
                    const AttentionRows& rows);
void attention_output(Ops& ops, const AttentionWeights& w, const AttentionRows& rows, View residual);

/// What the backward needs of a forward pass. Keys and values lie in memory of the pass's arena.
struct AttentionKept {
  AttentionKept() = default;
  AttentionKept(AttentionKept&&) = default;
  AttentionKept& operator=(AttentionKept&&) = default;

  ConstView x;                                // [R, C] active
  View q;                                     // [R, C] real
  std::vector<void*> keys, values, key_sums;  // pages of all sequences, one after another
  std::vector<KvChunks> kv;                   // of each sequence
  ChunkAttention call;                        // with y, lse and chosen
};

/// How attention and its gate are taught where to look, beside the attention's own gradient.
struct AttentionTeaching {
  std::span<const int64_t> rows;     ///< sampled queries, rising; none: not taught
  std::optional<Mentions> mentions;  ///< of those, where the pointing loss is on
  struct Loss {
    float scale = 0;    ///< GateLoss::scale, PointingLoss::scale; 0: off
    View losses, hits;  ///< [n, H] real
  } gate, pointing;
};

/// Memory for all of that but x, for sequences from empty states. `chunk_size` and `top_k` as in ModelConfig.
AttentionKept attention_memory(Ops& ops, std::span<const int64_t> offsets, int64_t channels,
                               int64_t chunk_size, int64_t top_k, Arena& arena);

/// Top-k chunk attention(x) for the backward, into memory of attention_memory(): keep.call.y is its result,
/// which the output projection has yet to be applied to.
void sparse_attention_keeping(Ops& ops, const AttentionWeights& w, ConstView x, Arena& arena,
                              AttentionKept& keep);

/// d_read [R, C] is the gradient of kept.call.y; dx [R, C] real is written. Gradients of weights are added
/// to.
void sparse_attention_backward(Ops& ops, const AttentionWeights& w, const AttentionGradients& dw,
                               const AttentionKept& kept, const AttentionTeaching& teaching, ConstView d_read,
                               View dx, Arena& arena);

}  // namespace rwkvx
