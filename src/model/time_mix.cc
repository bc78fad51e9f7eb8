#include "model/time_mix.h"

#include "ops/training.h"

namespace rwkvx {

void time_mix(Ops& ops, const TimeMixWeights& w, const Batch& batch, const TimeMixState& state,
              bool first_block, const MixInput& input, View v_first, View residual, Arena& arena,
              TimeMixKept* keep) {
  const int64_t R = input.rows(), C = input.channels();
  const auto real = [&](int64_t width) { return arena.take(ops.real(), {R, width}); };
  const auto active = [&](int64_t width) { return arena.take(ops.active(), {R, width}); };

  const std::array<View, 6> mixed{active(C), active(C), active(C), active(C), active(C), active(C)};
  const auto& [xr, xw, xk, xv, xa, xg] = mixed;

  const TimeMixKept given = keep ? *keep : TimeMixKept();
  const auto real_unless = [&](View own) { return own ? own : real(C); };
  const auto down = [&](View own, const Matrix& matrix) { return own ? own : active(matrix.out()); };
  const View r = real_unless(given.r), k = real_unless(given.k),
             v = first_block ? v_first : real_unless(given.v), g = real(C);
  const View decay_down = down(given.decay_down, w.w1), rate_down = down(given.rate_down, w.a1),
             gate_down = down(given.gate_down, w.g1);
  const View decay = real(C), rate = real(C);
  const View value_down = first_block ? View() : down(given.value_down, w.v1),
             value_gate = first_block ? View() : real(C);
  // Two rounds of independent products: what reads the mixed inputs, then what reads the low-rank middles.
  // The first block has no value residual, which comes last in both.
  const std::array<LinearCall, 7> first{{{xr, &w.receptance, r},
                                         {xk, &w.key, k},
                                         {xv, &w.value, v},
                                         {xw, &w.w1, decay_down, Activation::tanh},
                                         {xa, &w.a1, rate_down},
                                         {xg, &w.g1, gate_down, Activation::sigmoid},
                                         {xv, &w.v1, value_down}}};
  const std::array<LinearCall, 4> second{{{decay_down, &w.w2, decay},
                                          {rate_down, &w.a2, rate},
                                          {gate_down, &w.g2, g},
                                          {value_down, &w.v2, value_gate}}};
  const size_t products = given.projections_known ? 0 : (first_block ? 6 : 7);
  norm_shift_linear(ops, input, keep != nullptr, w.mix, batch, state.shift, mixed,
                    std::span(first).first(products));
  ops.linear(std::span(second).first(first_block ? 3 : 4));

  const View decay_factor = real(C), removal = real(C), replacement = real(C), read = real_unless(given.read);
  // Otherwise in place. The first block's v is not changed.
  const View key = keep ? real(C) : k, value = keep && !first_block ? real(C) : v;
  const Wkv7Operands operands{.decay = decay,
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
                              .k_out = key,
                              .v_out = value,
                              .a = removal,
                              .b = replacement,
                              .reset = batch.resets};
  View states = given.states;
  if (keep && !states) {
    states = arena.take(ops.real(), {wkv7_intervals(batch.offsets), C / kHeadSize, kHeadSize, kHeadSize});
  }
  const Wkv7Call recurrence{.r = r,
                            .w = decay_factor,
                            .k = key,
                            .v = value,
                            .a = removal,
                            .b = replacement,
                            .offsets = batch.offsets,
                            .states = state.wkv,
                            .y = read,
                            .kept = states};
  const View gated = active(C);
  const Wkv7Output output{.x = read,
                          .r = r,
                          .k = key,
                          .v = value,
                          .g = g,
                          .r_k = w.r_k,
                          .gain = w.ln_x.gain,
                          .bias = w.ln_x.bias,
                          .eps = kGroupNormEps,
                          .y = gated};
  if (keep) {  // which needs what a step does not leave behind
    ops.wkv7_operands(operands);
    if (!given.mixing_known) ops.wkv7(recurrence);
    ops.wkv7_output(output);
  } else {
    ops.wkv7_step({operands, recurrence, output});
  }
  if (residual) ops.linear({.x = gated, .w = &w.output, .y = residual, .add = true});
  if (keep) {
    *keep = {input.normed, mixed, decay_down, rate_down, value_down, gate_down, operands, r, k, v, g,
             states,       read,  gated};
  }
}

void time_mix_backward(Ops& ops, const TimeMixWeights& w, const TimeMixGradients& dw, const Batch& batch,
                       bool first_block, const TimeMixKept& kept, const TimeMixNeighbours& around,
                       ConstView d_residual, View dv_first, View dx, Arena& arena) {
  const Arena::Scope scope(arena);
  TrainingOps& training = ops.training();
  const int64_t R = d_residual.dim(0), C = d_residual.dim(1);
  const auto real = [&](int64_t width) { return arena.take(ops.real(), {R, width}); };
  const Wkv7Operands& operands = kept.operands;

  // Output projection, gate, bonus and group norm.
  const View d_gated = real(C), d_read = real(C), dr = real(C), dk = real(C), dv = real(C), dg = real(C);
  training.linear_backward(
      {.dy = d_residual, .x = kept.gated, .w = &w.output, .dx = d_gated, .dw = dw.output});
  training.wkv7_output_backward({.x = kept.read,
                                 .r = kept.r,
                                 .k = operands.k_out,
                                 .v = operands.v_out,
                                 .g = kept.g,
                                 .r_k = w.r_k,
                                 .gain = w.ln_x.gain,
                                 .bias = w.ln_x.bias,
                                 .eps = kGroupNormEps,
                                 .y = {}},
                                {.dy = d_gated,
                                 .dx = d_read,
                                 .dr = dr,
                                 .dk = dk,
                                 .dv = dv,
                                 .dg = dg,
                                 .dr_k = dw.r_k,
                                 .dgain = dw.ln_x.gain,
                                 .dbias = dw.ln_x.bias});

  // The recurrence and its operands, in place.
  const View d_decay = real(C), d_rate = real(C), d_value_gate = d_gated;
  training.wkv7_backward({.r = kept.r,
                          .w = operands.w,
                          .k = operands.k_out,
                          .v = operands.v_out,
                          .a = operands.a,
                          .b = operands.b,
                          .offsets = batch.offsets,
                          .states = {},
                          .y = kept.read,
                          .kept = kept.states},
                         {.dy = d_read,
                          .dr = dr,
                          .dk = dk,
                          .dv = dv,
                          .dw = d_decay,
                          .da = d_rate,
                          .db = d_value_gate,
                          .dstates = around.dstates});
  training.wkv7_operands_backward(operands, {.dw = d_decay,
                                             .dk = dk,
                                             .dv = dv,
                                             .da = d_rate,
                                             .db = d_value_gate,
                                             .ddecay = d_decay,
                                             .drate = d_rate,
                                             .dvalue_gate = d_value_gate,
                                             .dk_in = dk,
                                             .dv_in = dv,
                                             .dv_first = dv_first,
                                             .dw0 = dw.w0,
                                             .da0 = dw.a0,
                                             .dv0 = dw.v0,
                                             .dk_k = dw.k_k,
                                             .dk_a = dw.k_a});

  // The two rounds of products, backward; again the first block's last ones do not exist.
  const View d_decay_down = real(w.w1.out()), d_rate_down = real(w.a1.out()), d_gate_down = real(w.g1.out());
  const View d_value_down = first_block ? View() : real(w.v1.out());
  const std::array<LinearBackward, 4> up{{{d_decay, kept.decay_down, &w.w2, d_decay_down, dw.w2},
                                          {d_rate, kept.rate_down, &w.a2, d_rate_down, dw.a2},
                                          {dg, kept.gate_down, &w.g2, d_gate_down, dw.g2},
                                          {d_value_gate, kept.value_down, &w.v2, d_value_down, dw.v2}}};
  training.linear_backward(std::span(up).first(first_block ? 3 : 4));
  const std::array<View, 6> d_mixed{real(C), real(C), real(C), real(C), real(C), real(C)};
  const auto& [dxr, dxw, dxk, dxv, dxa, dxg] = d_mixed;
  const auto& [xr, xw, xk, xv, xa, xg] = kept.mixed;
  const std::array<LinearBackward, 7> down{{
      {dr, xr, &w.receptance, dxr, dw.receptance},
      {dk, xk, &w.key, dxk, dw.key},
      {dv, xv, &w.value, dxv, dw.value},
      {d_decay_down, xw, &w.w1, dxw, dw.w1, Activation::tanh, kept.decay_down},
      {d_rate_down, xa, &w.a1, dxa, dw.a1},
      {d_gate_down, xg, &w.g1, dxg, dw.g1, Activation::sigmoid, kept.gate_down},
      {.dy = d_value_down, .x = xv, .w = &w.v1, .dx = dxv, .dw = dw.v1, .add = true},
  }};
  training.linear_backward(std::span(down).first(first_block ? 6 : 7));
  training.token_shift_backward({.x = kept.x,
                                 .mix = w.mix,
                                 .offsets = batch.offsets,
                                 .dy = d_mixed,
                                 .dx = dx,
                                 .dmix = dw.mix,
                                 .around = around.shift});
}

}  // namespace rwkvx
