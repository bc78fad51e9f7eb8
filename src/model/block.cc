#include "model/block.h"

#include "ops/training.h"

namespace rwkvx {
namespace {

/// The second half of both kinds.
template <typename BlockWeights, typename Kept>
void second_half(Ops& ops, const BlockWeights& w, const Batch& batch, std::span<void* const> channel_shift,
                 View normed, View x, Arena& arena, Kept* keep) {
  View residual = x;
  if (keep != nullptr) {
    keep->middle = x;
    if (keep->result_needed) {
      keep->middle = arena.take(ops.real(), x.shape());
      ops.copy(x.data(), keep->middle.data(), x.bytes());
    } else {
      residual = {};
    }
  }
  ops.layer_norm(x, w.ln2.gain, w.ln2.bias, kNormEps, normed);
  channel_mix(ops, w.ffn, batch, channel_shift, normed, residual, arena, keep ? &keep->ffn : nullptr);
}

/// d becomes the gradient of the residual stream between the halves. normed [R, C] real is work space.
template <typename BlockWeights, typename BlockGradients, typename Kept>
void second_half_backward(Ops& ops, const BlockWeights& w, const BlockGradients& dw, const Batch& batch,
                          const Kept& kept, View d_normed, View d, Arena& arena) {
  channel_mix_backward(ops, w.ffn, dw.ffn, batch, kept.ffn, d, d_normed, arena);
  ops.training().layer_norm_backward({.x = kept.middle,
                                      .gain = w.ln2.gain,
                                      .eps = kNormEps,
                                      .dy = d_normed,
                                      .dx = d,
                                      .add = true,
                                      .dgain = dw.ln2.gain,
                                      .dbias = dw.ln2.bias});
}

}  // namespace

void rwkv_block(Ops& ops, const RwkvBlockWeights& w, const Batch& batch, const RwkvBlockState& state,
                bool first_block, View v_first, View x, Arena& arena, RwkvBlockKept* keep) {
  const View normed = arena.take(ops.real(), x.shape());
  ops.layer_norm(x, w.ln1.gain, w.ln1.bias, kNormEps, normed);
  time_mix(ops, w.att, batch, {state.time_shift, state.wkv}, first_block, normed, v_first, x, arena,
           keep ? &keep->att : nullptr);
  const View second = keep ? arena.take(ops.real(), x.shape()) : normed;
  second_half(ops, w, batch, state.channel_shift, second, x, arena, keep);
}

void sparse_block(Ops& ops, const SparseBlockWeights& w, const Batch& batch, std::span<KvStore* const> stores,
                  std::span<void* const> channel_shift, int64_t top_k, View x, Arena& arena) {
  const View attention_input = arena.take(ops.active(), x.shape());
  ops.layer_norm(x, w.ln1.gain, w.ln1.bias, kNormEps, attention_input);
  sparse_attention(ops, w.att, batch, stores, top_k, attention_input, x, arena);
  const View normed = arena.take(ops.real(), x.shape());
  second_half<SparseBlockWeights, SparseBlockKept>(ops, w, batch, channel_shift, normed, x, arena, nullptr);
}

void sparse_block_keeping(Ops& ops, const SparseBlockWeights& w, const Batch& batch, int64_t chunk_size,
                          int64_t top_k, std::span<void* const> channel_shift, View x, Arena& arena,
                          SparseBlockKept& keep) {
  const View attention_input = arena.take(ops.active(), x.shape());
  ops.layer_norm(x, w.ln1.gain, w.ln1.bias, kNormEps, attention_input);
  sparse_attention_keeping(ops, w.att, batch, chunk_size, top_k, attention_input, x, arena, keep.att);
  const View normed = arena.take(ops.real(), x.shape());
  second_half(ops, w, batch, channel_shift, normed, x, arena, &keep);
}

void rwkv_block_backward(Ops& ops, const RwkvBlockWeights& w, const RwkvBlockGradients& dw,
                         const Batch& batch, bool first_block, const RwkvBlockKept& kept, View dv_first,
                         View d, Arena& arena) {
  const Arena::Scope scope(arena);
  const View d_normed = arena.take(ops.real(), d.shape());
  second_half_backward(ops, w, dw, batch, kept, d_normed, d, arena);
  time_mix_backward(ops, w.att, dw.att, batch, first_block, kept.att, d, dv_first, d_normed, arena);
  ops.training().layer_norm_backward({.x = kept.x,
                                      .gain = w.ln1.gain,
                                      .eps = kNormEps,
                                      .dy = d_normed,
                                      .dx = d,
                                      .add = true,
                                      .dgain = dw.ln1.gain,
                                      .dbias = dw.ln1.bias});
}

void sparse_block_backward(Ops& ops, const SparseBlockWeights& w, const SparseBlockGradients& dw,
                           const Batch& batch, const SparseBlockKept& kept, const GateTeaching& gate, View d,
                           Arena& arena) {
  const Arena::Scope scope(arena);
  const View d_normed = arena.take(ops.real(), d.shape());
  second_half_backward(ops, w, dw, batch, kept, d_normed, d, arena);
  sparse_attention_backward(ops, w.att, dw.att, kept.att, gate, d, d_normed, arena);
  ops.training().layer_norm_backward({.x = kept.x,
                                      .gain = w.ln1.gain,
                                      .eps = kNormEps,
                                      .dy = d_normed,
                                      .dx = d,
                                      .add = true,
                                      .dgain = dw.ln1.gain,
                                      .dbias = dw.ln1.bias});
}

}  // namespace rwkvx
