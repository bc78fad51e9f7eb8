#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/losses.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Calls f(values, first, count) for the vectors of a row; lanes behind the end hold `fill`.
template <typename Function>
HWY_INLINE void for_vectors(const float* row, int64_t count, float fill, Function f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(load(row + i), i, kLanes);
  if (i == count) return;
  float tail[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) tail[j] = i + j < count ? row[i + j] : fill;
  f(load(tail), i, count - i);
}

HWY_INLINE void store_some(V value, float* to, int64_t count) {
  if (count == kLanes) return store(value, to);
  float tail[kLanes];
  store(value, tail);
  for (int64_t j = 0; j < count; ++j) to[j] = tail[j];
}

void cross_entropy_rows(const CrossEntropy& call, int64_t begin, int64_t end) {
  const int64_t width = call.logits.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const float* row = call.logits.as<float>() + t * width;
    float* d = call.dlogits ? call.dlogits.as<float>() + t * width : nullptr;
    float& loss = call.losses.as<float>()[t];
    const int32_t target = call.targets[static_cast<size_t>(t)];
    if (target < 0) {
      loss = 0;
      if (call.hits) call.hits.as<float>()[t] = 0;
      if (d) std::fill(d, d + width, 0.0f);
      continue;
    }
    V most = set(-INFINITY);
    for_vectors(row, width, -INFINITY, [&](V x, int64_t, int64_t) { most = hn::Max(most, x); });
    const float highest = hn::GetLane(hn::MaxOfLanes(F(), most));
    V total = zero();
    for_vectors(row, width, -INFINITY,
                [&](V x, int64_t, int64_t) { total = hn::Add(total, exp(hn::Sub(x, set(highest)))); });
    const float sum = sum_of_lanes(total);
    loss = std::log(sum) + (highest - row[target]);
    if (call.hits) call.hits.as<float>()[t] = row[target] == highest ? 1 : 0;
    if (!d) continue;
    const auto top = std::find(row, row + width, highest) - row;
    const float weight = call.scale * (call.weights.empty() ? 1.0f : call.weights[static_cast<size_t>(t)]);
    const V share = set(weight / sum);
    for_vectors(row, width, -INFINITY, [&](V x, int64_t first, int64_t count) {
      store_some(hn::Mul(exp(hn::Sub(x, set(highest))), share), d + first, count);
    });
    d[target] -= weight;
    if (top < width) d[top] += call.scale * call.l2wrap * highest;
  }
}

double sum_of_squares(const float* x, int64_t count) {
  constexpr int64_t kBlock = 4096;  // float sums within, double over blocks
  double total = 0;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    V sum = zero();
    for_vectors(x + begin, std::min(kBlock, count - begin), 0.0f,
                [&](V v, int64_t, int64_t) { sum = hn::MulAdd(v, v, sum); });
    total += static_cast<double>(sum_of_lanes(sum));
  }
  return total;
}

template <typename Weight>
HWY_INLINE void typed_adamw(const AdamWTensor& tensor, const AdamWStep& step, Weight* weight, int64_t begin,
                            int64_t end) {
  const double rate = step.rate * static_cast<double>(tensor.rate_factor);
  const auto t = static_cast<double>(step.step);
  const V scale = set(static_cast<float>(step.gradient_scale));
  const V beta1 = set(static_cast<float>(step.beta1)), rest1 = set(static_cast<float>(1 - step.beta1));
  const V beta2 = set(static_cast<float>(step.beta2)), rest2 = set(static_cast<float>(1 - step.beta2));
  const V kept = set(static_cast<float>(1 - rate * (tensor.decay ? step.decay : 0)));
  const V size = set(static_cast<float>(rate / (1 - std::pow(step.beta1, t))));
  const V root = set(static_cast<float>(1 / std::sqrt(1 - std::pow(step.beta2, t))));
  const V eps = set(static_cast<float>(step.eps));
  float *master = tensor.master.as<float>(), *m1 = tensor.moment1.as<float>(),
        *m2 = tensor.moment2.as<float>();
  const float* gradient = tensor.gradient.as<float>();
  const auto update = [&](V g, V& x, V& m, V& v) {
    g = hn::Mul(g, scale);
    m = hn::MulAdd(beta1, m, hn::Mul(rest1, g));
    v = hn::MulAdd(beta2, v, hn::Mul(rest2, hn::Mul(g, g)));
    const V step_of = hn::Div(hn::Mul(size, m), hn::MulAdd(hn::Sqrt(v), root, eps));
    x = hn::Sub(hn::Mul(x, kept), step_of);
  };
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) {
    V x = load(master + i), m = load(m1 + i), v = load(m2 + i);
    update(load(gradient + i), x, m, v);
    store(x, master + i);
    store(m, m1 + i);
    store(v, m2 + i);
    store(x, weight + i);
  }
  if (i == end) return;
  float g_tail[kLanes] = {}, x_tail[kLanes] = {}, m_tail[kLanes] = {}, v_tail[kLanes] = {};
  Weight weight_tail[kLanes];
  for (int64_t j = i; j < end; ++j) {
    g_tail[j - i] = gradient[j];
    x_tail[j - i] = master[j];
    m_tail[j - i] = m1[j];
    v_tail[j - i] = m2[j];
  }
  V x = load(x_tail), m = load(m_tail), v = load(v_tail);
  update(load(g_tail), x, m, v);
  store(x, x_tail);
  store(m, m_tail);
  store(v, v_tail);
  store(x, weight_tail);
  for (int64_t j = i; j < end; ++j) {
    master[j] = x_tail[j - i];
    m1[j] = m_tail[j - i];
    m2[j] = v_tail[j - i];
    weight[j] = weight_tail[j - i];
  }
}

void adamw_range(const AdamWTensor& tensor, const AdamWStep& step, int64_t begin, int64_t end) {
  with_real_or_bf16(tensor.weight.dtype(), tensor.weight.data(),
                    [&](auto* weight) { typed_adamw(tensor, step, weight, begin, end); });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(cross_entropy_rows);
HWY_EXPORT(sum_of_squares);
HWY_EXPORT(adamw_range);

void cross_entropy_rows(const CrossEntropy& call, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(cross_entropy_rows)(call, begin, end);
}
double sum_of_squares(const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(sum_of_squares)(x, count);
}
void adamw_range(const AdamWTensor& tensor, const AdamWStep& step, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(adamw_range)(tensor, step, begin, end);
}

}  // namespace rwkvx::cpu
#endif
