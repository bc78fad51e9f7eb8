#include "model/time_mix.h"

namespace rwkvx {

void time_mix(Ops& ops, const TimeMixWeights& w, const Batch& batch, const TimeMixState& state,
              bool first_block, ConstView x, View v_first, View residual, Arena& arena) {
  const int64_t R = x.dim(0), C = x.dim(1);
  const auto real = [&](int64_t width) { return arena.take(ops.real(), {R, width}); };
  const auto active = [&](int64_t width) { return arena.take(ops.active(), {R, width}); };

  const std::array<View, 6> mixed{active(C), active(C), active(C), active(C), active(C), active(C)};
  const auto& [xr, xw, xk, xv, xa, xg] = mixed;
  ops.token_shift(x, w.mix, batch.offsets, state.shift, mixed);

  const View r = real(C), k = real(C), v = first_block ? v_first : real(C), g = real(C);
  const View decay_down = active(w.w1.out()), rate_down = active(w.a1.out()), gate_down = active(w.g1.out());
  const View decay = real(C), rate = real(C);
  const View value_down = first_block ? View() : active(w.v1.out()),
             value_gate = first_block ? View() : real(C);
  // Two rounds of independent products: what reads the mixed inputs, then what reads the low-rank middles.
  // The first block has no value residual, which comes last in both.
  const std::array<LinearCall, 7> down{{{xr, &w.receptance, r},
                                        {xk, &w.key, k},
                                        {xv, &w.value, v},
                                        {xw, &w.w1, decay_down, Activation::tanh},
                                        {xa, &w.a1, rate_down},
                                        {xg, &w.g1, gate_down, Activation::sigmoid},
                                        {xv, &w.v1, value_down}}};
  const std::array<LinearCall, 4> up{{{decay_down, &w.w2, decay},
                                      {rate_down, &w.a2, rate},
                                      {gate_down, &w.g2, g},
                                      {value_down, &w.v2, value_gate}}};
  ops.linear(std::span(down).first(first_block ? 6 : 7));
  ops.linear(std::span(up).first(first_block ? 3 : 4));

  const View decay_factor = real(C), removal = real(C), replacement = real(C), read = real(C);
  ops.wkv7_operands({.decay = decay,
                     .rate = rate,
                     .value_gate = value_gate,
                     .k = k,
                     .v = v,
                     .v_first = v_first,
                     .w0 = w.w0,
                     .a0 = w.a0,
                     .v0 = w.v0,
                     .k_k = w.k_k,
                     .k_a = w.k_a,
                     .w = decay_factor,
                     .k_out = k,
                     .v_out = v,
                     .a = removal,
                     .b = replacement});
  ops.wkv7({.r = r,
            .w = decay_factor,
            .k = k,
            .v = v,
            .a = removal,
            .b = replacement,
            .offsets = batch.offsets,
            .states = state.wkv,
            .y = read});
  const View gated = active(C);
  ops.wkv7_output({.x = read,
                   .r = r,
                   .k = k,
                   .v = v,
                   .g = g,
                   .r_k = w.r_k,
                   .gain = w.ln_x.gain,
                   .bias = w.ln_x.bias,
                   .eps = kGroupNormEps,
                   .y = gated});
  ops.linear({.x = gated, .w = &w.output, .y = residual, .add = true});
}

}  // namespace rwkvx
