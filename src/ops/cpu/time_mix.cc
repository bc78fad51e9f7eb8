#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/time_mix.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

void wkv7_operands_rows(const Wkv7Operands& call, int64_t begin, int64_t end) {
  const int64_t width = call.k.dim(1);
  const auto *w0 = call.w0.as<float>(), *a0 = call.a0.as<float>(), *k_k = call.k_k.as<float>(),
             *k_a = call.k_a.as<float>();
  const float* v0 = call.value_gate ? call.v0.as<float>() : nullptr;
  const V log_decay = set(-0.60653065971263342f);  // −e^(−1/2)
  for (int64_t t = begin; t < end; ++t) {
    const V kept = set(!call.reset.empty() && call.reset[static_cast<size_t>(t)] != 0 ? 0.0f : 1.0f);
    for (int64_t head = 0; head < width; head += kHeadSize) {
      const int64_t at = t * width + head;
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
        store(hn::Mul(exp(hn::Mul(log_decay, decay)), kept), call.w.as<float>() + at + c);
        store(hn::Neg(hn::Mul(kappa, kept)), call.a.as<float>() + at + c);
        store(hn::Mul(kappa, rate), call.b.as<float>() + at + c);
        const V factor = hn::MulAdd(hn::Sub(rate, set(1.0f)), load(k_a + channel), set(1.0f));
        store(hn::Mul(key, factor), call.k_out.as<float>() + at + c);
        V v = load(call.v.as<float>() + at + c);
        if (v0) {
          const V gate = sigmoid(hn::Add(load(v0 + channel), load(call.value_gate.as<float>() + at + c)));
          v = hn::MulAdd(hn::Sub(load(call.v_first.as<float>() + at + c), v), gate, v);
        }
        store(v, call.v_out.as<float>() + at + c);
      }
    }
  }
}

void wkv7_output_rows(const Wkv7Output& call, int64_t begin, int64_t end) {
  const int64_t width = call.x.dim(1);
  const auto *r_k = call.r_k.as<float>(), *gain = call.gain.as<float>(), *bias = call.bias.as<float>();
  with_real_or_bf16(call.y.dtype(), call.y.data(), [&](auto* y) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < width; head += kHeadSize) {
        const int64_t at = t * width + head;
        const float *x = call.x.as<float>() + at, *r = call.r.as<float>() + at, *k = call.k.as<float>() + at;
        V bonus = zero(), sum = zero(), squares = zero();
        for (int64_t c = 0; c < kHeadSize; c += kLanes) {
          bonus = hn::MulAdd(hn::Mul(load(r + c), load(k + c)), load(r_k + head + c), bonus);
          sum = hn::Add(sum, load(x + c));
        }
        const V mean = set(sum_of_lanes(sum) / kHeadSize);
        for (int64_t c = 0; c < kHeadSize; c += kLanes) {
          const V d = hn::Sub(load(x + c), mean);
          squares = hn::MulAdd(d, d, squares);
        }
        const V scale = set(1.0f / std::sqrt(sum_of_lanes(squares) / kHeadSize + call.eps));
        const V bonus_sum = set(sum_of_lanes(bonus));
        for (int64_t c = 0; c < kHeadSize; c += kLanes) {
          const V normal = hn::Mul(hn::Sub(load(x + c), mean), scale);
          const V out = hn::MulAdd(normal, load(gain + head + c), load(bias + head + c));
          const V with_bonus = hn::MulAdd(bonus_sum, load(call.v.as<float>() + at + c), out);
          store(hn::Mul(with_bonus, load(call.g.as<float>() + at + c)), y + at + c);
        }
      }
    }
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(wkv7_operands_rows);
HWY_EXPORT(wkv7_output_rows);

void wkv7_operands_rows(const Wkv7Operands& call, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(wkv7_operands_rows)(call, begin, end);
}
void wkv7_output_rows(const Wkv7Output& call, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(wkv7_output_rows)(call, begin, end);
}

}  // namespace rwkvx::cpu
#endif
