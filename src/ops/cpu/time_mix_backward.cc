#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/time_mix_backward.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// sum[c] += value
HWY_INLINE void add_to(float* sum, V value) { store(hn::Add(load(sum), value), sum); }

void wkv7_operands_backward_rows(const Wkv7Operands& op, const Wkv7OperandsGradients& g, int64_t begin,
                                 int64_t end, float* sums) {
  const int64_t width = op.k.dim(1);
  const bool first = !op.value_gate;
  const auto *w0 = op.w0.as<float>(), *a0 = op.a0.as<float>(), *k_k = op.k_k.as<float>(),
             *k_a = op.k_a.as<float>();
  const float* v0 = first ? nullptr : op.v0.as<float>();
  float *dw0 = sums, *da0 = sums + width, *dv0 = sums + 2 * width, *dk_k = sums + 3 * width,
        *dk_a = sums + 4 * width;
  const V log_decay = set(-0.60653065971263342f), one = set(1.0f);  // −e^(−1/2)
  for (int64_t t = begin; t < end; ++t) {
    const V kept = set(!op.reset.empty() && op.reset[static_cast<size_t>(t)] != 0 ? 0.0f : 1.0f);
    for (int64_t head = 0; head < width; head += kHeadSize) {
      const int64_t at = t * width + head;
      const float* k = op.k.as<float>() + at;
      V squares = zero();
      for (int64_t c = 0; c < kHeadSize; c += kLanes) {
        const V z = hn::Mul(load(k + c), load(k_k + head + c));
        squares = hn::MulAdd(z, z, squares);
      }
      const float norm = std::sqrt(sum_of_lanes(squares));
      const bool clamped = norm < 1e-12f;
      const V inverse = set(1.0f / (clamped ? 1e-12f : norm));
      V kappa[kHeadVectors], rate[kHeadVectors], dkappa[kHeadVectors], along = zero();
      for (int64_t i = 0; i < kHeadVectors; ++i) {
        const int64_t c = i * kLanes, channel = head + c;
        kappa[i] = hn::Mul(hn::Mul(load(k + c), load(k_k + channel)), inverse);
        rate[i] = sigmoid(hn::Add(load(a0 + channel), load(op.rate.as<float>() + at + c)));
        dkappa[i] = hn::Sub(hn::Mul(load(g.db.as<float>() + at + c), rate[i]),
                            hn::Mul(kept, load(g.da.as<float>() + at + c)));
        along = hn::MulAdd(kappa[i], dkappa[i], along);
      }
      const V projection = set(clamped ? 0.0f : sum_of_lanes(along));
      for (int64_t i = 0; i < kHeadVectors; ++i) {
        const int64_t c = i * kLanes, channel = head + c;
        const V key = load(k + c), dk_out = load(g.dk.as<float>() + at + c), alpha = load(k_a + channel);
        const V dz = hn::Mul(hn::NegMulAdd(kappa[i], projection, dkappa[i]), inverse);
        const V dk_key = hn::Mul(dk_out, key);
        V drate = hn::MulAdd(load(g.db.as<float>() + at + c), kappa[i], hn::Mul(dk_key, alpha));
        drate = hn::Mul(drate, hn::NegMulAdd(rate[i], rate[i], rate[i]));
        const V decay = sigmoid(hn::Add(load(w0 + channel), load(op.decay.as<float>() + at + c)));
        const V w = exp(hn::Mul(log_decay, decay));
        V ddecay = hn::Mul(hn::Mul(load(g.dw.as<float>() + at + c), kept), hn::Mul(w, log_decay));
        ddecay = hn::Mul(ddecay, hn::NegMulAdd(decay, decay, decay));
        const V less = hn::Sub(rate[i], one), factor = hn::MulAdd(less, alpha, one);
        const V dv = load(g.dv.as<float>() + at + c);
        add_to(dw0 + channel, ddecay);
        add_to(da0 + channel, drate);
        add_to(dk_k + channel, hn::Mul(dz, key));
        add_to(dk_a + channel, hn::Mul(dk_key, less));
        // The results may lie where the gradients that came in lay.
        store(ddecay, g.ddecay.as<float>() + at + c);
        store(drate, g.drate.as<float>() + at + c);
        store(hn::MulAdd(dk_out, factor, hn::Mul(dz, load(k_k + channel))), g.dk_in.as<float>() + at + c);
        float* dv_first = g.dv_first.as<float>() + at + c;
        if (first) {
          store(hn::Add(dv, load(dv_first)), g.dv_in.as<float>() + at + c);
          continue;
        }
        const V gate = sigmoid(hn::Add(load(v0 + channel), load(op.value_gate.as<float>() + at + c)));
        const V share = hn::Mul(dv, gate);
        const V apart = hn::Sub(load(op.v_first.as<float>() + at + c), load(op.v.as<float>() + at + c));
        const V dgate = hn::Mul(hn::Mul(share, apart), hn::Sub(one, gate));
        add_to(dv0 + channel, dgate);
        store(dgate, g.dvalue_gate.as<float>() + at + c);
        store(hn::Sub(dv, share), g.dv_in.as<float>() + at + c);
        store(hn::Add(load(dv_first), share), dv_first);
      }
    }
  }
}

void wkv7_output_backward_rows(const Wkv7Output& op, const Wkv7OutputGradients& g, int64_t begin, int64_t end,
                               float* sums) {
  const int64_t width = op.x.dim(1);
  const auto *r_k = op.r_k.as<float>(), *gain = op.gain.as<float>(), *bias = op.bias.as<float>();
  float *dr_k = sums, *dgain = sums + width, *dbias = sums + 2 * width;
  constexpr float kShare = 1.0f / kHeadSize;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t head = 0; head < width; head += kHeadSize) {
      const int64_t at = t * width + head;
      const float *x = op.x.as<float>() + at, *r = op.r.as<float>() + at, *k = op.k.as<float>() + at,
                  *v = op.v.as<float>() + at, *gate = op.g.as<float>() + at, *dy = g.dy.as<float>() + at;
      V bonus = zero(), sum = zero(), squares = zero(), dbonus = zero(), dn_sum = zero(), dnn_sum = zero();
      for (int64_t c = 0; c < kHeadSize; c += kLanes) {
        bonus = hn::MulAdd(hn::Mul(load(r + c), load(k + c)), load(r_k + head + c), bonus);
        dbonus = hn::MulAdd(hn::Mul(load(dy + c), load(gate + c)), load(v + c), dbonus);
        sum = hn::Add(sum, load(x + c));
      }
      const V mean = set(sum_of_lanes(sum) * kShare);
      for (int64_t c = 0; c < kHeadSize; c += kLanes) {
        const V d = hn::Sub(load(x + c), mean);
        squares = hn::MulAdd(d, d, squares);
      }
      const V scale = set(1.0f / std::sqrt(sum_of_lanes(squares) * kShare + op.eps));
      const V bonus_sum = set(sum_of_lanes(bonus)), dbonus_sum = set(sum_of_lanes(dbonus));
      V normal[kHeadVectors], dn[kHeadVectors];  // dn: the gradient of the normalised values
      for (int64_t i = 0; i < kHeadVectors; ++i) {
        const int64_t c = i * kLanes, channel = head + c;
        normal[i] = hn::Mul(hn::Sub(load(x + c), mean), scale);
        const V d = hn::Mul(load(dy + c), load(gate + c));
        add_to(dgain + channel, hn::Mul(d, normal[i]));
        add_to(dbias + channel, d);
        dn[i] = hn::Mul(d, load(gain + channel));
        dn_sum = hn::Add(dn_sum, dn[i]);
        dnn_sum = hn::MulAdd(dn[i], normal[i], dnn_sum);
      }
      const V dn_mean = set(sum_of_lanes(dn_sum) * kShare), dnn_mean = set(sum_of_lanes(dnn_sum) * kShare);
      for (int64_t i = 0; i < kHeadVectors; ++i) {
        const int64_t c = i * kLanes, channel = head + c;
        const V receptance = load(r + c), key = load(k + c), rho = load(r_k + channel), d = load(dy + c),
                open = load(gate + c), value = load(v + c);
        const V affine = hn::MulAdd(normal[i], load(gain + channel), load(bias + channel));
        add_to(dr_k + channel, hn::Mul(dbonus_sum, hn::Mul(receptance, key)));
        const V drho = hn::Mul(dbonus_sum, rho);
        store(hn::Mul(d, hn::MulAdd(bonus_sum, value, affine)), g.dg.as<float>() + at + c);
        store(hn::Mul(drho, key), g.dr.as<float>() + at + c);
        store(hn::Mul(drho, receptance), g.dk.as<float>() + at + c);
        store(hn::Mul(bonus_sum, hn::Mul(d, open)), g.dv.as<float>() + at + c);
        store(hn::Mul(scale, hn::NegMulAdd(normal[i], dnn_mean, hn::Sub(dn[i], dn_mean))),
              g.dx.as<float>() + at + c);
      }
    }
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(wkv7_operands_backward_rows);
HWY_EXPORT(wkv7_output_backward_rows);

void wkv7_operands_backward_rows(const Wkv7Operands& forward, const Wkv7OperandsGradients& gradients,
                                 int64_t begin, int64_t end, float* sums) {
  HWY_DYNAMIC_DISPATCH(wkv7_operands_backward_rows)(forward, gradients, begin, end, sums);
}
void wkv7_output_backward_rows(const Wkv7Output& forward, const Wkv7OutputGradients& gradients, int64_t begin,
                               int64_t end, float* sums) {
  HWY_DYNAMIC_DISPATCH(wkv7_output_backward_rows)(forward, gradients, begin, end, sums);
}

}  // namespace rwkvx::cpu
#endif
