/// What stands around the recurrence of a time mix, for one head of one token.
#if defined(RWKVX_OPS_CPU_TIME_MIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_TIME_MIX_INL_H_
#undef RWKVX_OPS_CPU_TIME_MIX_INL_H_
#else
#define RWKVX_OPS_CPU_TIME_MIX_INL_H_
#endif

#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Where a head's channels of the recurrence's operands go.
struct HeadOperands {
  float *w, *k, *v, *a, *b;
};

/// `head` is the head's first channel.
HWY_INLINE void operands_of_head(const Wkv7Operands& call, int64_t t, int64_t head, const HeadOperands& to) {
  const auto *w0 = call.w0.as<float>(), *a0 = call.a0.as<float>(), *k_k = call.k_k.as<float>(),
             *k_a = call.k_a.as<float>();
  const float* v0 = call.value_gate ? call.v0.as<float>() : nullptr;
  const V log_decay = set(-0.60653065971263342f);  // −e^(−1/2)
  const V kept = set(!call.reset.empty() && call.reset[static_cast<size_t>(t)] != 0 ? 0.0f : 1.0f);
  const int64_t at = t * call.k.dim(1) + head;
  const float* k = call.k.as<float>() + at;
  V squares = zero();
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    const V kappa = hn::Mul(load(k + c), load(k_k + head + c));
    squares = hn::MulAdd(kappa, kappa, squares);
  }
  const float norm = std::sqrt(sum_of_lanes(squares));
  const V inverse = set(1.0f / (norm < 1e-12f ? 1e-12f : norm));
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    const int64_t channel = head + c;
    const V key = load(k + c);
    const V kappa = hn::Mul(hn::Mul(key, load(k_k + channel)), inverse);
    const V rate = sigmoid(hn::Add(load(a0 + channel), load(call.rate.as<float>() + at + c)));
    const V decay = sigmoid(hn::Add(load(w0 + channel), load(call.decay.as<float>() + at + c)));
    store(hn::Mul(exp(hn::Mul(log_decay, decay)), kept), to.w + c);
    store(hn::Neg(hn::Mul(kappa, kept)), to.a + c);
    store(hn::Mul(kappa, rate), to.b + c);
    const V factor = hn::MulAdd(hn::Sub(rate, set(1.0f)), load(k_a + channel), set(1.0f));
    store(hn::Mul(key, factor), to.k + c);
    V v = load(call.v.as<float>() + at + c);
    if (v0) {
      const V gate = sigmoid(hn::Add(load(v0 + channel), load(call.value_gate.as<float>() + at + c)));
      v = hn::MulAdd(hn::Sub(load(call.v_first.as<float>() + at + c), v), gate, v);
    }
    store(v, to.v + c);
  }
}

/// What the recurrence gave (x) and got for a head.
struct HeadResults {
  const float *x, *r, *k, *v;
};

template <typename Out>
HWY_INLINE void output_of_head(const Wkv7Output& call, int64_t t, int64_t head, const HeadResults& from,
                               Out* y) {
  const auto *r_k = call.r_k.as<float>(), *gain = call.gain.as<float>(), *bias = call.bias.as<float>();
  const int64_t at = t * call.x.dim(1) + head;
  V bonus = zero(), sum = zero(), squares = zero();
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    bonus = hn::MulAdd(hn::Mul(load(from.r + c), load(from.k + c)), load(r_k + head + c), bonus);
    sum = hn::Add(sum, load(from.x + c));
  }
  const V mean = set(sum_of_lanes(sum) / kHeadSize);
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    const V d = hn::Sub(load(from.x + c), mean);
    squares = hn::MulAdd(d, d, squares);
  }
  const V scale = set(1.0f / std::sqrt(sum_of_lanes(squares) / kHeadSize + call.eps));
  const V bonus_sum = set(sum_of_lanes(bonus));
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    const V normal = hn::Mul(hn::Sub(load(from.x + c), mean), scale);
    const V out = hn::MulAdd(normal, load(gain + head + c), load(bias + head + c));
    const V with_bonus = hn::MulAdd(bonus_sum, load(from.v + c), out);
    store(hn::Mul(with_bonus, load(call.g.as<float>() + at + c)), y + at + c);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
