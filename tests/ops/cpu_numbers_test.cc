#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/highway.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/kernels.h"
#include "tensor/half.h"

/// Conversions and elementary functions of the cpu backend over their whole ranges, on every instruction set.
namespace rwkvx::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename Test>
void on_every_target(Test test) {
  for (const int64_t target : {HWY_SSE4, HWY_AVX2, HWY_AVX3, HWY_NEON}) {
    hwy::SetSupportedTargetsForTest(0);
    if ((hwy::SupportedTargets() & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    test();
  }
  hwy::SetSupportedTargetsForTest(0);
}

bool same(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) || std::memcmp(&a, &b, sizeof(float)) == 0;
}

/// Every one of the 65536 values, subnormal, infinite and NaN ones too.
TEST(CpuNumbers, HalvesBecomeFloatsExactly) {
  std::vector<BFloat16> bf16(65536);
  std::vector<Float16> f16(65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    bf16[i].bits = static_cast<uint16_t>(i);
    f16[i].bits = static_cast<uint16_t>(i);
  }
  on_every_target([&] {
    std::vector<float> from_bf16(65536), from_f16(65536);
    convert(bf16.data(), DType::bf16, from_bf16.data(), DType::f32, 65536);
    convert(f16.data(), DType::f16, from_f16.data(), DType::f32, 65536);
    int wrong = 0;
    for (size_t i = 0; i < 65536; ++i) {
      if (!same(from_bf16[i], to_float(bf16[i])) || !same(from_f16[i], to_float(f16[i]))) ++wrong;
    }
    EXPECT_EQ(wrong, 0);
  });
}

TEST(CpuNumbers, FloatsRoundToBfloat16AsSpecified) {
  std::vector<float> values{0.0f, -0.0f, 1e-45f, -1e-40f, 3.4e38f, 3.3961776e38f, kInfinity, -kInfinity, NAN};
  for (uint32_t i = 0; i < 20000; ++i) {  // all around the halfway points, of all magnitudes
    const uint32_t bits = (i * 2654435761u & 0xffff0000u) | (0x7ffeu + i % 4);
    values.push_back(std::bit_cast<float>(bits));
  }
  on_every_target([&] {
    std::vector<BFloat16> rounded(values.size());
    const auto count = static_cast<int64_t>(values.size());
    convert(values.data(), DType::f32, rounded.data(), DType::bf16, count);
    int wrong = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const float want = to_float(to_bfloat16(values[i])), got = to_float(rounded[i]);
      if (!same(want, got)) ++wrong;
    }
    EXPECT_EQ(wrong, 0);
  });
}

/// Values from every part of the range, both signs.
std::vector<float> range() {
  std::vector<float> values{0, kInfinity, NAN};
  for (double x = 1e-30; x < 1e30; x *= 1.7) values.push_back(static_cast<float>(x));
  for (int i = 1; i < 4000; ++i) values.push_back(static_cast<float>(i) * 0.0287f);
  const size_t half = values.size();
  for (size_t i = 0; i < half; ++i) values.push_back(-values[i]);
  while (values.size() % 64 != 0) values.push_back(1);
  return values;
}

void expect_close(double got, double want, double absolute, double relative, double x) {
  if (std::isnan(want)) {
    EXPECT_TRUE(std::isnan(got)) << "of " << x;
  } else if (got != want && !(std::abs(got - want) <= absolute + relative * std::abs(want))) {
    ADD_FAILURE() << "of " << x << " is " << got << ", not " << want;
  }
}

/// Activations by way of a product with 1, of few rows (our kernels) and of many (oneDNN).
TEST(CpuNumbers, Activations) {
  const float one = 1;
  const std::vector<float> x = range();
  on_every_target([&] {
    const auto ops = make_cpu_ops(Precision::f32, 1);
    const Matrix w = ops->prepare(ConstView(&one, DType::f32, {1, 1}));
    for (const int64_t rows : {8, 64}) {
      for (const Activation activation : {Activation::tanh, Activation::sigmoid, Activation::relu_squared}) {
        SCOPED_TRACE(testing::Message()
                     << "activation " << static_cast<int>(activation) << ", rows " << rows);
        std::vector<float> y(x.size());
        for (size_t i = 0; i < x.size(); i += static_cast<size_t>(rows)) {
          ops->linear({.x = ConstView(x.data() + i, DType::f32, {rows, 1}),
                       .w = &w,
                       .y = View(y.data() + i, DType::f32, {rows, 1}),
                       .activation = activation});
        }
        for (size_t i = 0; i < x.size(); ++i) {
          // oneDNN's products of NaN activations are its own; ours keep NaN.
          if (rows == 64 && !std::isfinite(x[i])) continue;
          const double z = x[i];
          switch (activation) {
            case Activation::tanh:
              expect_close(y[i], std::tanh(z), rows == 64 ? 1e-6 : 1e-37, 4e-7, z);
              break;
            case Activation::sigmoid:  // below e^−87 it may be 0
              expect_close(y[i], 1 / (1 + std::exp(-z)), 1e-37, 5e-7, z);
              break;
            default:
              expect_close(y[i],
                           z > 0   ? static_cast<float>(z) * static_cast<float>(z)
                           : z < 0 ? 0
                                   : z,
                           1e-37, 2e-7, z);
          }
        }
      }
    }
  });
}

/// w = exp(−e^(−1/2) σ(z)) to 1e-6 and better, whatever z.
TEST(CpuNumbers, DecayOverTheWholeRange) {
  const std::vector<float> z = range();
  const auto rows = static_cast<int64_t>(z.size() / 64);
  const Shape all{rows, 64};
  const std::vector<float> zero(64, 0), ones(z.size(), 1);
  std::vector<float> w(z.size()), a(z.size()), b(z.size()), k(z.size()), v(z.size());
  on_every_target([&] {
    Wkv7Operands call;
    call.decay = ConstView(z.data(), DType::f32, all);
    call.rate = call.k = call.v = ConstView(ones.data(), DType::f32, all);
    call.w0 = call.a0 = call.k_a = ConstView(zero.data(), DType::f32, {64});
    call.k_k = ConstView(ones.data(), DType::f32, {64});
    call.w = View(w.data(), DType::f32, all);
    call.a = View(a.data(), DType::f32, all);
    call.b = View(b.data(), DType::f32, all);
    call.k_out = View(k.data(), DType::f32, all);
    call.v_out = View(v.data(), DType::f32, all);
    make_cpu_ops(Precision::f32, 1)->wkv7_operands(call);
    for (size_t i = 0; i < z.size(); ++i) {
      expect_close(w[i], std::exp(-std::exp(-0.5) / (1 + std::exp(-static_cast<double>(z[i])))), 0, 3e-7,
                   z[i]);
    }
  });
}

}  // namespace
}  // namespace rwkvx::cpu
