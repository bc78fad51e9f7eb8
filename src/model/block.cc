#include "model/block.h"

#include "model/norm_backward.h"

namespace rwkvx {
namespace {

template <typename BlockWeights, typename BlockGradients>
void half_backward(Ops& ops, const BlockWeights& w, const BlockGradients& dw, const Batch& batch,
                   const SecondHalfKept& kept, const ShiftNeighbours& around, View d, Arena& arena) {
  const Arena::Scope scope(arena);
  const View d_normed = arena.take(ops.real(), d.shape());
  channel_mix_backward(ops, w.ffn, dw.ffn, batch, kept.ffn, around, d, d_normed, arena);
  norm_backward(ops.training(), w.ln2, dw.ln2, kept.middle, d_normed, d, true);
}

}  // namespace

void second_half(Ops& ops, const NormWeights& ln2, const ChannelMixWeights& ffn, const Batch& batch,
                 std::span<void* const> channel_shift, View normed, View x, Arena& arena,
                 SecondHalfKept* keep) {
  View residual = x;
  if (keep != nullptr && !keep->result_needed) {
    if (x) keep->middle = x;
    residual = {};
  } else if (keep != nullptr) {
    if (!keep->middle) keep->middle = arena.take(ops.real(), x.shape());
    ops.copy(x.data(), keep->middle.data(), x.bytes());
  }
  const MixInput input{ln2, keep ? keep->middle : x, normed};
  channel_mix(ops, ffn, batch, channel_shift, input, residual, arena, keep ? &keep->ffn : nullptr);
}

void rwkv_block(Ops& ops, const RwkvBlockWeights& w, const Batch& batch, const RwkvBlockState& state,
                bool first_block, View v_first, View x, Arena& arena, RwkvBlockKept* keep) {
  const ConstView input = keep ? keep->x : ConstView(x);
  const View normed = arena.take(ops.real(), input.shape());
  time_mix(ops, w.att, batch, {state.time_shift, state.wkv}, first_block, {w.ln1, input, normed}, v_first, x,
           arena, keep ? &keep->att : nullptr);
  const View second = keep ? arena.take(ops.real(), input.shape()) : normed;
  second_half(ops, w.ln2, w.ffn, batch, state.channel_shift, second, x, arena,
              keep ? &keep->second : nullptr);
}

void before_reading(Ops& ops, const SparseBlockWeights& w, View x, const AttentionRows& rows, Arena& arena) {
  const View input = arena.take(ops.active(), x.shape());
  attention_inputs(ops, w.ln1, w.att, x, input, rows);
}

void behind_reading(Ops& ops, const SparseBlockWeights& w, const Batch& batch,
                    std::span<void* const> channel_shift, const AttentionRows& rows, View x, Arena& arena) {
  attention_output(ops, w.att, rows, x);
  const View normed = arena.take(ops.real(), x.shape());
  second_half(ops, w.ln2, w.ffn, batch, channel_shift, normed, x, arena);
}

void sparse_block(Ops& ops, const SparseBlockWeights& w, const Batch& batch, std::span<KvStore* const> stores,
                  std::span<void* const> channel_shift, int64_t top_k, View x, Arena& arena) {
  const AttentionRows rows = attention_rows(ops, x.dim(0), x.dim(1), arena);
  before_reading(ops, w, x, rows, arena);
  attention_read(ops, batch, stores, top_k, rows);
  behind_reading(ops, w, batch, channel_shift, rows, x, arena);
}

void second_half_backward(Ops& ops, const SparseBlockWeights& w, const SparseBlockGradients& dw,
                          const Batch& batch, const SecondHalfKept& kept, const ShiftNeighbours& around,
                          View d, Arena& arena) {
  half_backward(ops, w, dw, batch, kept, around, d, arena);
}

void rwkv_block_backward(Ops& ops, const RwkvBlockWeights& w, const RwkvBlockGradients& dw,
                         const Batch& batch, bool first_block, const RwkvBlockKept& kept,
                         const RwkvBlockNeighbours& around, View dv_first, View d, Arena& arena) {
  half_backward(ops, w, dw, batch, kept.second, around.ffn, d, arena);
  const Arena::Scope scope(arena);
  const View d_normed = arena.take(ops.real(), d.shape());
  time_mix_backward(ops, w.att, dw.att, batch, first_block, kept.att, around.att, d, dv_first, d_normed,
                    arena);
  norm_backward(ops.training(), w.ln1, dw.ln1, kept.x, d_normed, d, true);
}

}  // namespace rwkvx
