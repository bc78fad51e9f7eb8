#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rows_backward.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

HWY_INLINE void add_to(float* to, V value) { store(hn::Add(load(to), value), to); }

void embed_backward_channels(std::span<const int32_t> tokens, ConstView dy, View dtable, int64_t begin,
                             int64_t end) {
  const int64_t width = dy.dim(1);
  for (size_t t = 0; t < tokens.size(); ++t) {
    const float* from = dy.as<float>() + static_cast<int64_t>(t) * width;
    float* to = dtable.as<float>() + tokens[t] * width;
    for (int64_t c = begin; c < end; c += kLanes) add_to(to + c, load(from + c));
  }
}

void layer_norm_backward_rows(const LayerNormBackward& call, int64_t begin, int64_t end, float* sums) {
  const int64_t width = call.x.dim(1);
  const float* gain = call.gain.as<float>();
  const float share = 1.0f / static_cast<float>(width);
  float *dgain = sums, *dbias = sums + width;
  for (int64_t t = begin; t < end; ++t) {
    const float *x = call.x.as<float>() + t * width, *dy = call.dy.as<float>() + t * width;
    float* dx = call.dx.as<float>() + t * width;
    V sum = zero(), squares = zero();
    for (int64_t c = 0; c < width; c += kLanes) sum = hn::Add(sum, load(x + c));
    const V mean = set(sum_of_lanes(sum) * share);
    for (int64_t c = 0; c < width; c += kLanes) {
      const V d = hn::Sub(load(x + c), mean);
      squares = hn::MulAdd(d, d, squares);
    }
    const V scale = set(1.0f / std::sqrt(sum_of_lanes(squares) * share + call.eps));
    V g_sum = zero(), gn_sum = zero();
    for (int64_t c = 0; c < width; c += kLanes) {
      const V normal = hn::Mul(hn::Sub(load(x + c), mean), scale), d = load(dy + c);
      const V g = hn::Mul(load(gain + c), d);
      g_sum = hn::Add(g_sum, g);
      gn_sum = hn::MulAdd(g, normal, gn_sum);
      store(hn::MulAdd(d, normal, load(dgain + c)), dgain + c);
      add_to(dbias + c, d);
    }
    const V g_mean = set(sum_of_lanes(g_sum) * share), gn_mean = set(sum_of_lanes(gn_sum) * share);
    for (int64_t c = 0; c < width; c += kLanes) {
      const V normal = hn::Mul(hn::Sub(load(x + c), mean), scale);
      const V g = hn::Mul(load(gain + c), load(dy + c));
      const V d = hn::Mul(scale, hn::NegMulAdd(normal, gn_mean, hn::Sub(g, g_mean)));
      store(call.add ? hn::Add(load(dx + c), d) : d, dx + c);
    }
  }
}

void token_shift_backward_rows(const TokenShiftBackward& call, int64_t first, int64_t last, int64_t begin,
                               int64_t end, float* sums) {
  const int64_t width = call.x.dim(1);
  const float* mix = call.mix.as<float>();
  const auto mixes = static_cast<int64_t>(call.dy.size());
  const ShiftNeighbours& around = call.around;
  for (int64_t t = begin; t < end; ++t) {
    const float* x = call.x.as<float>() + t * width;
    float* dx = call.dx.as<float>() + t * width;
    const float* previous = t > first                 ? x - width
                            : t == 0 && around.before ? around.before.as<float>()
                                                      : nullptr;
    const float* sent = t + 1 == call.x.dim(0) && around.from_after ? around.from_after.as<float>() : nullptr;
    for (int64_t c = 0; c < width; c += kLanes) {
      const V before = previous ? load(previous + c) : zero(), change = hn::Sub(before, load(x + c));
      V sum = sent ? load(sent + c) : zero();
      for (int64_t m = 0; m < mixes; ++m) {
        const float* dy = call.dy[static_cast<size_t>(m)].as<float>() + t * width + c;
        const V now = load(dy), mu = load(mix + m * width + c);
        sum = hn::Add(sum, hn::NegMulAdd(now, mu, now));
        if (t + 1 < last) sum = hn::MulAdd(load(dy + width), mu, sum);
        float* dmix = sums + m * width + c;
        store(hn::MulAdd(now, change, load(dmix)), dmix);
      }
      store(sum, dx + c);
    }
  }
}

/// The derivative in terms of the activation's result.
template <Activation kActivation>
HWY_INLINE V slope(V y) {
  if constexpr (kActivation == Activation::tanh) return hn::NegMulAdd(y, y, set(1.0f));
  if constexpr (kActivation == Activation::sigmoid) return hn::NegMulAdd(y, y, y);
  if constexpr (kActivation == Activation::relu_squared) {
    const V root = hn::Sqrt(y);
    return hn::Add(root, root);
  }
  return set(1.0f);
}

template <Activation kActivation, typename Dy, typename Y, typename Du>
HWY_INLINE void multiply_slope(const Dy* dy, const Y* y, Du* du, int64_t count) {
  int64_t i = 0;
  const auto one = [](V gradient, V result) { return hn::Mul(gradient, slope<kActivation>(result)); };
  for (; i + kLanes <= count; i += kLanes) {
    if constexpr (kActivation == Activation::none) {
      store(load(dy + i), du + i);
    } else {
      store(one(load(dy + i), load(y + i)), du + i);
    }
  }
  if (i == count) return;
  Dy dy_tail[kLanes] = {};
  Y y_tail[kLanes] = {};
  Du du_tail[kLanes];
  for (int64_t j = i; j < count; ++j) {
    dy_tail[j - i] = dy[j];
    if (kActivation != Activation::none) y_tail[j - i] = y[j];
  }
  store(one(load(dy_tail), load(y_tail)), du_tail);
  for (int64_t j = i; j < count; ++j) du[j] = du_tail[j - i];
}

template <Activation kActivation>
HWY_INLINE void typed_activation_backward(const LinearBackward& call, void* du, DType du_type, int64_t begin,
                                          int64_t end) {
  with_real_or_bf16(call.dy.dtype(), call.dy.data(), [&](auto* dy) {
    with_real_or_bf16(call.y.dtype(), call.y.data(), [&](auto* y) {
      with_real_or_bf16(du_type, du, [&](auto* to) {
        multiply_slope<kActivation>(dy + begin, kActivation == Activation::none ? y : y + begin, to + begin,
                                    end - begin);
      });
    });
  });
}

void activation_backward(const LinearBackward& call, void* du, DType du_type, int64_t begin, int64_t end) {
  switch (call.activation) {
    case Activation::none:
      return typed_activation_backward<Activation::none>(call, du, du_type, begin, end);
    case Activation::tanh:
      return typed_activation_backward<Activation::tanh>(call, du, du_type, begin, end);
    case Activation::sigmoid:
      return typed_activation_backward<Activation::sigmoid>(call, du, du_type, begin, end);
    case Activation::relu_squared:
      return typed_activation_backward<Activation::relu_squared>(call, du, du_type, begin, end);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(embed_backward_channels);
HWY_EXPORT(layer_norm_backward_rows);
HWY_EXPORT(token_shift_backward_rows);
HWY_EXPORT(activation_backward);

void embed_backward_channels(std::span<const int32_t> tokens, ConstView dy, View dtable, int64_t begin,
                             int64_t end) {
  HWY_DYNAMIC_DISPATCH(embed_backward_channels)(tokens, dy, dtable, begin, end);
}
void layer_norm_backward_rows(const LayerNormBackward& call, int64_t begin, int64_t end, float* sums) {
  HWY_DYNAMIC_DISPATCH(layer_norm_backward_rows)(call, begin, end, sums);
}
void token_shift_backward_rows(const TokenShiftBackward& call, int64_t first, int64_t last, int64_t begin,
                               int64_t end, float* sums) {
  HWY_DYNAMIC_DISPATCH(token_shift_backward_rows)(call, first, last, begin, end, sums);
}
void activation_backward(const LinearBackward& call, void* du, DType du_type, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(activation_backward)(call, du, du_type, begin, end);
}

}  // namespace rwkvx::cpu
#endif
