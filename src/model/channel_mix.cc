#include "model/channel_mix.h"

#include "ops/training.h"

namespace rwkvx {

void channel_mix(Ops& ops, const ChannelMixWeights& w, const Batch& batch, std::span<void* const> shift,
                 const MixInput& input, View residual, Arena& arena, ChannelMixKept* keep) {
  const int64_t R = input.rows(), C = input.channels();
  const View mixed = arena.take(ops.active(), {R, C});
  const View hidden = keep && keep->hidden ? keep->hidden : arena.take(ops.active(), {R, w.key.out()});
  const LinearCall key{.x = mixed, .w = &w.key, .y = hidden, .activation = Activation::relu_squared};
  const bool known = keep && keep->hidden_known;
  norm_shift_linear(ops, input, keep != nullptr, w.x_k.reshaped({1, C}), batch, shift, std::span(&mixed, 1),
                    std::span(&key, known ? 0 : 1));
  if (residual) ops.linear({.x = hidden, .w = &w.value, .y = residual, .add = true});
  if (keep) *keep = {input.normed, mixed, hidden, keep->hidden_known};
}

void channel_mix_backward(Ops& ops, const ChannelMixWeights& w, const ChannelMixGradients& dw,
                          const Batch& batch, const ChannelMixKept& kept, const ShiftNeighbours& around,
                          ConstView d_residual, View dx, Arena& arena) {
  const Arena::Scope scope(arena);
  const View d_hidden = arena.take(ops.real(), kept.hidden.shape());
  const View d_mixed = arena.take(ops.real(), kept.mixed.shape());
  TrainingOps& training = ops.training();
  training.linear_backward(
      {.dy = d_residual, .x = kept.hidden, .w = &w.value, .dx = d_hidden, .dw = dw.value});
  training.linear_backward({.dy = d_hidden,
                            .x = kept.mixed,
                            .w = &w.key,
                            .dx = d_mixed,
                            .dw = dw.key,
                            .activation = Activation::relu_squared,
                            .y = kept.hidden});
  training.token_shift_backward({.x = kept.x,
                                 .mix = w.x_k.reshaped({1, dx.dim(1)}),
                                 .offsets = batch.offsets,
                                 .dy = std::span(&d_mixed, 1),
                                 .dx = dx,
                                 .dmix = dw.x_k,
                                 .around = around});
}

}  // namespace rwkvx
