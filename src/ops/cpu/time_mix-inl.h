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

/// e^(−e^(−1/2) · x), 0 ≤ x ≤ 1, within 3 units in the last place: 1 + x · Q(x), Q fitted to that.
template <int kVectors>
HWY_INLINE void decay_of(V (&x)[kVectors]) {
  constexpr float kSeries[] = {5.112137839e-05f,
                               -6.604534376e-04f,
                               5.623290371e-03f,
                               -3.718299769e-02f,
                               1.839388653e-01f,
                               -6.065306136e-01f,
                               1.0f};
  V p[kVectors];
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = set(kSeries[0]);
  RWKVX_UNROLL for (int term = 1; term < 7; ++term) {
    RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = hn::MulAdd(p[i], x[i], set(kSeries[term]));
  }
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = p[i];
}

template <bool kCoarse, int kVectors>
HWY_INLINE void gate_of(V (&x)[kVectors]) {
  if constexpr (kCoarse) {
    sigmoid_coarse(x);
  } else {
    sigmoid(x);
  }
}

/// `head` is the head's first channel. kCoarse: what is written is rounded to bfloat16 afterwards, and the
/// decay's sigmoid may be as coarse as the projection that it comes from.
template <bool kCoarse = false>
HWY_INLINE void operands_of_head(const Wkv7Operands& call, int64_t t, int64_t head, const HeadOperands& to) {
  constexpr int kTogether = kLanes == 16 ? 4 : 2;  // vectors; limited by the registers
  const int64_t at = t * call.k.dim(1) + head;
  const float *w0 = call.w0.as<float>() + head, *a0 = call.a0.as<float>() + head,
              *k_k = call.k_k.as<float>() + head, *k_a = call.k_a.as<float>() + head;
  const float *k = call.k.as<float>() + at, *v = call.v.as<float>() + at, *rates = call.rate.as<float>() + at,
              *decays = call.decay.as<float>() + at;
  const float *v0 = nullptr, *gates = nullptr, *v_first = nullptr;
  if (call.value_gate) {
    v0 = call.v0.as<float>() + head;
    gates = call.value_gate.as<float>() + at;
    v_first = call.v_first.as<float>() + at;
  }
  const V kept = set(!call.reset.empty() && call.reset[static_cast<size_t>(t)] != 0 ? 0.0f : 1.0f);
  V squares = zero();
  for (int64_t c = 0; c < kHeadSize; c += kLanes) {
    const V kappa = hn::Mul(load(k + c), load(k_k + c));
    squares = hn::MulAdd(kappa, kappa, squares);
  }
  const float norm = std::sqrt(sum_of_lanes(squares));
  const V inverse = set(1.0f / (norm < 1e-12f ? 1e-12f : norm));
  for (int64_t first = 0; first < kHeadSize; first += kTogether * kLanes) {
    V rate[kTogether], decay[kTogether];
    RWKVX_UNROLL for (int i = 0; i < kTogether; ++i) {
      const int64_t c = first + i * kLanes;
      rate[i] = hn::Add(load(a0 + c), load(rates + c));
      decay[i] = hn::Add(load(w0 + c), load(decays + c));
    }
    gate_of<kCoarse>(decay);
    decay_of(decay);
    gate_of<kCoarse>(rate);
    V value[kTogether], gate[kTogether];
    RWKVX_UNROLL for (int i = 0; i < kTogether; ++i) value[i] = load(v + first + i * kLanes);
    if (gates != nullptr) {
      RWKVX_UNROLL for (int i = 0; i < kTogether; ++i) {
        const int64_t c = first + i * kLanes;
        gate[i] = hn::Add(load(v0 + c), load(gates + c));
      }
      gate_of<kCoarse>(gate);
      RWKVX_UNROLL for (int i = 0; i < kTogether; ++i) {
        value[i] = hn::MulAdd(hn::Sub(load(v_first + first + i * kLanes), value[i]), gate[i], value[i]);
      }
    }
    RWKVX_UNROLL for (int i = 0; i < kTogether; ++i) {
      const int64_t c = first + i * kLanes;
      const V key = load(k + c);
      const V kappa = hn::Mul(hn::Mul(key, load(k_k + c)), inverse);
      store(hn::Mul(decay[i], kept), to.w + c);
      store(hn::Neg(hn::Mul(kappa, kept)), to.a + c);
      store(hn::Mul(kappa, rate[i]), to.b + c);
      const V factor = hn::MulAdd(hn::Sub(rate[i], set(1.0f)), load(k_a + c), set(1.0f));
      store(hn::Mul(key, factor), to.k + c);
      store(value[i], to.v + c);
    }
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
