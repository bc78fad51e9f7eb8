#pragma once

#include "model/channel_mix.h"
#include "model/sparse_attention.h"
#include "model/time_mix.h"

/// The two kinds of blocks, forward for every use and backward for training.
namespace rwkvx {

/// State of one RWKV-7 block, one pointer for each sequence of the batch.
struct RwkvBlockState {
  std::span<void*const> time_shift, wkv, channel_shift;
};

/// What the backward of a block needs beside its input. Views of an arena.
struct RwkvBlockKept {
  ConstView x;  ///< set by the caller: a copy of the block's input, [R, C] real
  bool result_needed =
      true;     ///< set by the caller: false where the block's result is not needed (recomputation)
  View middle;  ///< the residual stream between the two halves
  TimeMixKept att;
  ChannelMixKept ffn;
};
struct SparseBlockKept {
  ConstView x;
  bool result_needed = true;
  View middle;
  AttentionKept att;
  ChannelMixKept ffn;
};

/// x += time_mix(ln1(x)); x += channel_mix(ln2(x)). x, v_first [R, C] real. Temporaries come from the arena;
/// with `keep` they stay taken until the caller's scope ends.
void rwkv_block(Ops& ops, const RwkvBlockWeights& w, const Batch& batch, const RwkvBlockState& state,
                bool first_block, View v_first, View x, Arena& arena, RwkvBlockKept* keep = nullptr);

/// x += attention(ln1(x)); x += channel_mix(ln2(x)). channel_shift: [C] for each sequence.
void sparse_block(Ops& ops, const SparseBlockWeights& w, const Batch& batch, std::span<KvStore* const> stores,
                  std::span<void* const> channel_shift, int64_t top_k, View x, Arena& arena);
/// The same from empty states, kept for the backward.
void sparse_block_keeping(Ops& ops, const SparseBlockWeights& w, const Batch& batch, int64_t chunk_size,
                          int64_t top_k, std::span<void* const> channel_shift, View x, Arena& arena,
                          SparseBlockKept& keep);

/// The backward from zero states: d [R, C] is the gradient of the block's output and becomes that of its
/// input. dv_first as in time_mix_backward(). Gradients of weights are added to.
void rwkv_block_backward(Ops& ops, const RwkvBlockWeights& w, const RwkvBlockGradients& dw,
                         const Batch& batch, bool first_block, const RwkvBlockKept& kept, View dv_first,
                         View d, Arena& arena);
void sparse_block_backward(Ops& ops, const SparseBlockWeights& w, const SparseBlockGradients& dw,
                           const Batch& batch, const SparseBlockKept& kept, const GateTeaching& gate, View d,
                           Arena& arena);

}  // namespace rwkvx
