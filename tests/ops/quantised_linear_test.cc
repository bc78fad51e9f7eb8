#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"
#include "instruction_sets.h"
#include "ops/cpu/tiles.h"
#include "ops/reference/reference_ops.h"

/// What the products with rounded inputs (bf16 precision, few rows) can be held to beyond the bounds of
/// linear_cases.cc. On every instruction set.
namespace rwkvx::test {
namespace {

class QuantisedLinearTest : public testing::TestWithParam<DType> {
 protected:
  /// Any bits but for the scales, which are finite: every quant, and every scale of a part, to its extremes.
  Buffer extreme_weights(int64_t out, int64_t in) const {
    Buffer weight(GetParam(), {out, in});
    Random random(3);
    const DTypeInfo& type = info(GetParam());
    auto* bytes = static_cast<uint8_t*>(weight.view().data());
    const auto count = static_cast<int64_t>(weight.view().bytes());
    for (int64_t i = 0; i < count; ++i) {
      const uint64_t draw = random.next();
      bytes[i] = draw % 4 == 0 ? 0x80 : draw % 4 == 1 ? 0xff : static_cast<uint8_t>(draw >> 8);
    }
    const bool minima = GetParam() == DType::q4_k || GetParam() == DType::q5_k;
    const size_t scale_at = GetParam() == DType::q6_k ? 208 : 0;
    for (int64_t block = 0; block < out * in / type.block_elements; ++block) {
      uint8_t* b = bytes + block * type.block_bytes;
      for (size_t i = 0; i < (minima ? 2u : 1u); ++i) {
        const Float16 scale = to_float16(static_cast<float>(random.uniform() - 0.5));
        std::memcpy(b + scale_at + 2 * i, &scale, 2);
      }
    }
    return weight;
  }
};

/// Whole numbers up to ±127 in every block of 32 are not rounded, so that only the order of sums differs.
TEST_P(QuantisedLinearTest, WholeNumbersAreExact) {
  constexpr int64_t kIn = 512, kOut = 70;
  const Buffer weight = extreme_weights(kOut, kIn);
  on_every_target([&](Ops& ops) {
    const auto reference = make_reference_ops(Precision::f64);
    const Matrix w = ops.prepare(weight), exact = reference->prepare(weight);
    // With AMX, more than 32 rows take weights that are rounded to bfloat16 (tile_products_test.cc).
    for (const int64_t rows : {1, 3, 8, 15, 32, 150}) {
      if (rows > 32 && cpu::tile_unit() != nullptr) continue;
      Buffer x(DType::f32, {rows, kIn}), x64(DType::f64, {rows, kIn}), y64(DType::f64, {rows, kOut});
      Random random(static_cast<uint64_t>(rows));
      for (int64_t i = 0; i < rows * kIn; ++i) {
        const auto value = static_cast<float>(static_cast<int64_t>(random.next() % 255) - 127);
        x.as<float>()[i] = i % 32 == 5 ? (i % 64 == 5 ? 127.0f : -127.0f) : value;
      }
      convert(x, x64);
      reference->linear({.x = x64, .w = &exact, .y = y64});
      const auto y = product(ops, w, x);
      double largest = 0;
      for (int64_t o = 0; o < kOut; ++o) {
        double norm = 0;
        Buffer row(DType::f64, {kIn});
        convert(weight.view().rows(o, 1), row);
        for (int64_t i = 0; i < kIn; ++i) norm += row.as<double>()[i] * row.as<double>()[i];
        largest = std::max(largest, std::sqrt(norm));
      }
      const double bound = sum_error(kIn) * largest * 127 * std::sqrt(kIn);
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(y[i]), y64.as<double>()[i], bound) << i << " of " << rows << " rows";
      }
    }
  });
}

/// Batches of any size give a row the same bits.
TEST_P(QuantisedLinearTest, RowsDoNotDependOnEachOther) {
  constexpr int64_t kIn = 256, kOut = 33;
  // Batches of more than 32 rows are computed by tiles where the processor has AMX.
  const int64_t kRows = cpu::tile_unit() != nullptr ? 19 : 300;
  const Buffer weight = extreme_weights(kOut, kIn);
  Buffer x(DType::f32, {kRows, kIn});
  Random random(1);
  for (int64_t i = 0; i < kRows * kIn; ++i) x.as<float>()[i] = static_cast<float>(random.normal());
  on_every_target([&](Ops& ops) {
    const Matrix w = ops.prepare(weight);
    const auto all = product(ops, w, x);
    for (const int64_t rows : {1, 2, 3, 4, 7, 8, 11, 129, 290}) {
      if (rows > kRows) break;
      const auto some = product(ops, w, x.view().rows(kRows - rows, rows));
      EXPECT_EQ(std::memcmp(some.data(), &all[static_cast<size_t>((kRows - rows) * kOut)],
                            some.size() * sizeof(float)),
                0)
          << rows;
    }
  });
}

TEST_P(QuantisedLinearTest, InputsThatAreNotFiniteTinyOrZero) {
  constexpr int64_t kIn = 256, kOut = 20;
  const Buffer weight = extreme_weights(kOut, kIn);
  on_every_target([&](Ops& ops) {
    const Matrix w = ops.prepare(weight);
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Buffer x(DType::f32, {2, kIn});
      for (int64_t i = 0; i < 2 * kIn; ++i) x.as<float>()[i] = 1;
      x.as<float>()[77] = bad;
      const auto y = product(ops, w, x);
      for (size_t o = 0; o < kOut; ++o) {
        EXPECT_FALSE(std::isfinite(y[o]));
        EXPECT_TRUE(std::isfinite(y[kOut + o]));
      }
    }
    for (const float small : {0.0f, 1e-38f, -1e-33f}) {
      Buffer x(DType::f32, {1, kIn});
      for (int64_t i = 0; i < kIn; ++i) x.as<float>()[i] = small;
      for (const float y : product(ops, w, x)) EXPECT_NEAR(y, 0, 1e-20);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Types, QuantisedLinearTest,
                         testing::Values(DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& one) { return std::string(name(one.param)); });

}  // namespace
}  // namespace rwkvx::test
