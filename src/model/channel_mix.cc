#include "model/channel_mix.h"

namespace rwkvx {

void channel_mix(Ops& ops, const ChannelMixWeights& w, const Batch& batch, std::span<void* const> shift,
                 ConstView x, View residual, Arena& arena) {
  const int64_t R = x.dim(0), C = x.dim(1);
  const View mixed = arena.take(ops.active(), {R, C});
  const View hidden = arena.take(ops.active(), {R, w.key.out()});
  ops.token_shift(x, w.x_k.reshaped({1, C}), batch.offsets, shift, std::span(&mixed, 1));
  ops.linear({.x = mixed, .w = &w.key, .y = hidden, .activation = Activation::relu_squared});
  ops.linear({.x = hidden, .w = &w.value, .y = residual, .add = true});
}

}  // namespace rwkvx
