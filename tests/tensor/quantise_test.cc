#include "tensor/quantise.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "tensor/blocks.h"
#include "tensor/buffer.h"
#include "tensor/convert.h"

/// Bytes and values of other programs are compared in tests/formats/quantised_test.cc.
namespace rwkvx {
namespace {

class QuantiseTest : public testing::TestWithParam<DType> {
 protected:
  std::vector<float> there_and_back(const std::vector<float>& x) const {
    const auto n = static_cast<int64_t>(x.size());
    std::vector<std::byte> blocks(bytes_of(GetParam(), n));
    std::vector<float> y(x.size());
    quantise(x.data(), GetParam(), blocks.data(), n);
    dequantise(blocks.data(), GetParam(), y.data(), n);
    return y;
  }
  /// Root mean square error relative to that of x.
  double error(const std::vector<float>& x) const {
    const auto y = there_and_back(x);
    double errors = 0, squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      errors += std::pow(static_cast<double>(x[i]) - static_cast<double>(y[i]), 2);
      squares += std::pow(static_cast<double>(x[i]), 2);
    }
    return std::sqrt(errors / squares);
  }
};

std::vector<float> normal(size_t n, float mean = 0, float deviation = 1) {
  std::mt19937 random(3);
  std::normal_distribution<float> draw(mean, deviation);
  std::vector<float> x(n);
  for (float& value : x) value = draw(random);
  return x;
}

/// Steps as wide as the range over 2^bits give a root mean square error of range / 2^bits / √12. Of 32 normal
/// numbers the range is 4.1, and the largest magnitude 2.4 (1.9 of 16), root mean squares, which is half the
/// range where there is no minimum. Sub-block scales of 6 bits and the search move that by some percent.
TEST_P(QuantiseTest, ErrorOfNormalNumbers) {
  const double bound = [&] {
    switch (GetParam()) {
      case DType::q8_0:
        return 2.4 / 127 / std::sqrt(12);
      case DType::q6_k:
        return 1.1 * 1.9 / 32 / std::sqrt(12);
      case DType::q5_k:
        return 1.1 * 4.1 / 31 / std::sqrt(12);
      case DType::q4_k:
        return 1.1 * 4.1 / 15 / std::sqrt(12);
      default:
        return 1.1 * 2.4 / 8 / std::sqrt(12);
    }
  }();
  const double found = error(normal(64 * 256));
  EXPECT_LE(found, bound);
  EXPECT_GE(found, bound / 2) << "too good to be true";
}

TEST_P(QuantiseTest, ZerosAreExact) {
  EXPECT_EQ(there_and_back(std::vector<float>(256, 0.0f)), std::vector<float>(256, 0.0f));
}

/// Also within blocks whose other values differ: sub-blocks of one sign, of one value, with an outlier.
TEST_P(QuantiseTest, UnevenBlocks) {
  std::vector<float> x = normal(512, 0, 0.01f);
  for (size_t i = 0; i < 32; ++i) {
    x[i] = 0.75f;
    x[32 + i] = -0.75f;
    x[64 + i] += 1;
    x[96 + i] -= 1;
    x[128 + i] = 0;
  }
  x[256 + 7] = 40;
  x[256 + 90] = -40;
  const auto y = there_and_back(x);
  const double step = GetParam() == DType::q4_0 ? 1.0 / 8 : GetParam() == DType::q4_k ? 1.0 / 15 : 1.0 / 31;
  for (size_t i = 0; i < 256; ++i) EXPECT_NEAR(y[i], x[i], step) << i;
  EXPECT_NEAR(y[256 + 7], 40, 0.6 * 40 * step);
  EXPECT_NEAR(y[256 + 90], -40, 1.1 * 40 * step);
  for (size_t i = 128; i < 160; ++i) EXPECT_EQ(y[i], 0.0f) << i;
}

TEST_P(QuantiseTest, SizesFromSubnormalToLarge) {
  for (const float size : {1e-3f, 1e2f, 1e4f}) EXPECT_LE(error(normal(1024, 0, size)), 0.12) << size;
  for (const float size : {1e-30f, 1e-9f}) {
    for (const float y : there_and_back(normal(256, 0, size))) EXPECT_LE(std::abs(y), 1e-4f);
  }
}

TEST_P(QuantiseTest, WhatIsNotFiniteStaysSo) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                          -std::numeric_limits<float>::infinity(), 3e38f}) {
    std::vector<float> x = normal(3 * 256);
    x[300] = bad;
    Buffer blocks(GetParam(), {3, 256});
    convert(ConstView(x.data(), DType::f32, {3, 256}), blocks);
    EXPECT_EQ(count_not_finite(blocks), 1) << bad;
    const auto y = there_and_back(x);
    EXPECT_FALSE(std::isfinite(y[300])) << bad;
    EXPECT_TRUE(std::isfinite(y[0]));
  }
}

/// Through convert(): in pieces, and from and to every float type.
TEST_P(QuantiseTest, ConvertedTensors) {
  const std::vector<float> x = normal(33 * 512);
  Buffer blocks(GetParam(), {33, 512}), again(GetParam(), {33, 512}), expected(GetParam(), {33, 512});
  convert(ConstView(x.data(), DType::f32, {33, 512}), blocks);
  quantise(x.data(), GetParam(), expected.view().data(), 33 * 512);
  EXPECT_TRUE(
      std::equal(blocks.view().raw().begin(), blocks.view().raw().end(), expected.view().raw().begin()));
  convert(blocks, again);
  EXPECT_TRUE(std::equal(blocks.view().raw().begin(), blocks.view().raw().end(), again.view().raw().begin()));
  const auto y = there_and_back(x);
  Buffer f32(DType::f32, {33, 512}), bf16(DType::bf16, {33, 512}), f64(DType::f64, {33, 512});
  convert(blocks, f32);
  convert(blocks, bf16);
  convert(blocks, f64);
  for (size_t i = 0; i < y.size(); ++i) {
    ASSERT_EQ(f32.as<float>()[i], y[i]) << i;
    ASSERT_EQ(f64.as<double>()[i], static_cast<double>(y[i])) << i;
    ASSERT_EQ(bf16.as<BFloat16>()[i].bits, to_bfloat16(y[i]).bits) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, QuantiseTest,
                         testing::Values(DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& one) { return std::string(name(one.param)); });

TEST(Quantise, SubScalesAreFoundAgain) {
  SubScales scales{};
  for (int s = 0; s < 8; ++s)
    scales.set(s, static_cast<uint8_t>(63 - 5 * s), static_cast<uint8_t>(7 * s + 3));
  for (int s = 0; s < 8; ++s) {
    EXPECT_EQ(scales.sub_scale(s), 63 - 5 * s) << s;
    EXPECT_EQ(scales.sub_min(s), 7 * s + 3) << s;
  }
}

TEST(Quantise, OtherTypes) {
  EXPECT_FALSE(is_computable(DType::q4_1));
  EXPECT_FALSE(is_computable(DType::f32));
  Buffer q(DType::q2_k, {256}), f(DType::f32, {256});
  EXPECT_ANY_THROW(convert(q, f));
  EXPECT_ANY_THROW(convert(f, q));
}

}  // namespace
}  // namespace rwkvx
