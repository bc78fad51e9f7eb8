#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "harness.h"
#include "instruction_sets.h"

/// Products with inputs that were announced as sparse, beyond the bounds of linear_cases.cc.
namespace rwkvx::test {
namespace {

constexpr int64_t kIn = 256, kOut = 192;

class SparseLinearTest : public testing::TestWithParam<DType> {
 protected:
  /// Normal values; where poisoned(input) says so, no numbers.
  template <typename Poisoned>
  static Buffer weights(Poisoned poisoned) {
    Buffer exact(DType::f32, {kOut, kIn}), weight(GetParam(), {kOut, kIn});
    Random random(5);
    for (int64_t i = 0; i < kOut * kIn; ++i) {
      const auto value = static_cast<float>(random.normal());
      exact.as<float>()[i] = poisoned(i % kIn) ? std::numeric_limits<float>::quiet_NaN() : value;
    }
    convert(exact, weight);
    return weight;
  }
};

TEST_P(SparseLinearTest, RowsDoNotDependOnEachOther) {
  const Buffer weight = weights([](int64_t) { return false; });
  for (const int64_t rows : {2, 3, 5, 8}) {
    for (const bool dense_rows : {false, true}) {
      Buffer x(DType::f32, {rows, kIn});
      Random random(rows);
      for (int64_t i = 0; i < rows * kIn; ++i) {
        const double share =
            dense_rows && i / kIn % 2 == 1 ? 0.9 : 0.05 * static_cast<double>(1 + i / kIn % 3);
        const auto value = static_cast<float>(random.normal());
        x.as<float>()[i] = random.uniform() < share ? value : 0;
      }
      on_every_target([&](Ops& ops) {
        const Matrix w = ops.prepare(weight, true);
        const std::vector<float> together = product(ops, w, x);
        for (int64_t r = 0; r < rows; ++r) {
          const std::vector<float> alone = product(ops, w, x.view().rows(r, 1));
          for (int64_t o = 0; o < kOut; ++o) {
            ASSERT_EQ(together[static_cast<size_t>(r * kOut + o)], alone[static_cast<size_t>(o)])
                << rows << " rows, row " << r << ", output " << o;
          }
        }
      });
    }
  }
}

TEST_P(SparseLinearTest, DoesNotReadTheWeightsOfZeros) {
  const auto poisoned = [](int64_t i) { return i / 32 % 4 != 0; };  // whole blocks: one has one scale
  const Buffer weight = weights(poisoned);
  for (const int64_t rows : {1, 3, 8}) {
    Buffer x(DType::f32, {rows, kIn});
    for (int64_t i = 0; i < rows * kIn; ++i) x.as<float>()[i] = poisoned(i % kIn) ? 0.0f : 1.0f;
    on_every_target([&](Ops& ops) {
      for (const float y : product(ops, ops.prepare(weight, true), x)) ASSERT_TRUE(std::isfinite(y));
      // Otherwise they are read, so that this test could see it.
      EXPECT_TRUE(std::isnan(product(ops, ops.prepare(weight, false), x)[0]));
    });
  }
}

TEST_P(SparseLinearTest, ZerosAndWhatIsNotFinite) {
  const Buffer weight = weights([](int64_t) { return false; });
  Buffer x(DType::f32, {1, kIn});
  on_every_target([&](Ops& ops) {
    const Matrix w = ops.prepare(weight, true);
    std::fill_n(x.as<float>(), kIn, 0.0f);
    for (const float y : product(ops, w, x)) ASSERT_EQ(y, 0);
    x.as<float>()[17] = std::numeric_limits<float>::quiet_NaN();
    for (const float y : product(ops, w, x)) ASSERT_TRUE(std::isnan(y));
  });
}

INSTANTIATE_TEST_SUITE_P(Types, SparseLinearTest,
                         testing::Values(DType::f32, DType::bf16, DType::f16, DType::q8_0),
                         [](const auto& one) { return std::string(name(one.param)); });

}  // namespace
}  // namespace rwkvx::test
