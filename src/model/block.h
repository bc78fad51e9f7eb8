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

/// What the backward of a block's second half, x += channel_mix(ln2(x)), needs of a forward pass.
struct SecondHalfKept {
  bool result_needed = true;  ///< set by the caller: false where the half's result is not needed
  /// [R, C] real, the residual stream between the halves: memory of the caller's, or empty before the
  /// forward: the arena's.
  View middle;
  ChannelMixKept ffn;
};

/// What the backward of a block needs beside its input. Views of an arena.
struct RwkvBlockKept {
  ConstView x;  ///< set by the caller: a copy of the block's input, [R, C] real
  TimeMixKept att;
  SecondHalfKept second;
};

/// x += time_mix(ln1(x)); x += channel_mix(ln2(x)). x, v_first [R, C] real. Temporaries come from the arena;
/// with `keep` they stay taken until the caller's scope ends. An empty x, with `keep`: its result is not
/// needed, and keep->second.middle is known.
void rwkv_block(Ops& ops, const RwkvBlockWeights& w, const Batch& batch, const RwkvBlockState& state,
                bool first_block, View v_first, View x, Arena& arena, RwkvBlockKept* keep = nullptr);

/// x += attention(ln1(x)); x += channel_mix(ln2(x)). channel_shift: [C] for each sequence.
void sparse_block(Ops& ops, const SparseBlockWeights& w, const Batch& batch, std::span<KvStore* const> stores,
                  std::span<void* const> channel_shift, int64_t top_k, View x, Arena& arena);
/// What of it comes before attention_read(), and behind it.
void before_reading(Ops& ops, const SparseBlockWeights& w, View x, const AttentionRows& rows, Arena& arena);
void behind_reading(Ops& ops, const SparseBlockWeights& w, const Batch& batch,
                    std::span<void* const> channel_shift, const AttentionRows& rows, View x, Arena& arena);

/// The second half alone. An empty x as in rwkv_block(). `normed` [R, C] real is room for ln2's output, which
/// keep->ffn refers to.
void second_half(Ops& ops, const NormWeights& ln2, const ChannelMixWeights& ffn, const Batch& batch,
                 std::span<void* const> channel_shift, View normed, View x, Arena& arena,
                 SecondHalfKept* keep = nullptr);
/// d [R, C] is the gradient of the half's output and becomes that of the stream between the halves.
void second_half_backward(Ops& ops, const SparseBlockWeights& w, const SparseBlockGradients& dw,
                          const Batch& batch, const SecondHalfKept& kept, const ShiftNeighbours& around,
                          View d, Arena& arena);

/// What the backward of a piece of longer sequences shares with the pieces around it.
struct RwkvBlockNeighbours {
  TimeMixNeighbours att;
  ShiftNeighbours ffn;
};

/// The backward from zero states, or of a piece of longer sequences: d [R, C] is the gradient of the block's
/// output and becomes that of its input. dv_first as in time_mix_backward(). Gradients of weights are added
/// to.
void rwkv_block_backward(Ops& ops, const RwkvBlockWeights& w, const RwkvBlockGradients& dw,
                         const Batch& batch, bool first_block, const RwkvBlockKept& kept,
                         const RwkvBlockNeighbours& around, View dv_first, View d, Arena& arena);

}  // namespace rwkvx
