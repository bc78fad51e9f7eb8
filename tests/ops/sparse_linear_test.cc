#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"
#include "instruction_sets.h"
#include "ops/reference/reference_ops.h"
#include "tensor/blocks.h"

/// Products with inputs that were announced as sparse, beyond the bounds of linear_cases.cc.
namespace rwkvx::test {
namespace {

constexpr int64_t kIn = 1024, kOut = 192;

/// Around `share` of each row's values are not zero; rows of `dense_rows`, most.
Buffer sparse_rows(int64_t rows, int64_t in, double share, bool dense_rows = false) {
  Buffer x(DType::f32, {rows, in});
  Random random(static_cast<uint64_t>(rows * in));
  for (int64_t i = 0; i < rows * in; ++i) {
    const double here = dense_rows && i / in % 2 == 1 ? 0.9 : share * static_cast<double>(1 + i / in % 3);
    const auto value = static_cast<float>(random.normal());
    x.as<float>()[i] = random.uniform() < here ? value : 0;
  }
  return x;
}

class SparseLinearTest : public testing::TestWithParam<DType> {
 protected:
  static bool has_minima() { return GetParam() == DType::q4_k || GetParam() == DType::q5_k; }
  /// Elements that share a scale which can be no number.
  static int64_t block() { return std::max<int64_t>(32, info(GetParam()).block_elements); }

  /// Normal values, or blocks of any bits with finite scales; where poisoned(input) says so, no numbers.
  template <typename Poisoned>
  static Buffer weights(int64_t out, int64_t in, Poisoned poisoned) {
    Buffer weight(GetParam(), {out, in});
    Random random(5);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    if (!is_quantised(GetParam())) {
      Buffer exact(DType::f32, {out, in});
      for (int64_t i = 0; i < out * in; ++i) {
        const auto value = static_cast<float>(random.normal());
        exact.as<float>()[i] = poisoned(i % in) ? nan : value;
      }
      convert(exact, weight);
      return weight;
    }
    auto* bytes = static_cast<uint8_t*>(weight.view().data());
    for (size_t i = 0; i < weight.view().bytes(); ++i) bytes[i] = static_cast<uint8_t>(random.next() >> 8);
    const DTypeInfo& type = info(GetParam());
    for (int64_t b = 0; b < out * in / type.block_elements; ++b) {
      uint8_t* scales =
          bytes + b * type.block_bytes + (GetParam() == DType::q6_k ? offsetof(BlockQ6_K, d) : 0);
      for (int i = 0; i < (has_minima() ? 2 : 1); ++i) {
        const auto value = static_cast<float>(random.uniform() - 0.5);
        const Float16 scale = to_float16(poisoned(b * type.block_elements % in) ? nan : value);
        std::memcpy(scales + 2 * i, &scale, 2);
      }
    }
    return weight;
  }
  static Buffer weights(int64_t out = kOut, int64_t in = kIn) {
    return weights(out, in, [](int64_t) { return false; });
  }

  /// Of what a weight is the sum of: d · scale · q, and d_min · minimum of at most 0.5 · 63.
  static double largest_term(const Buffer& weight) {
    Buffer values(DType::f32, weight.view().shape());
    convert(weight, values);
    double largest = 0;
    for (int64_t i = 0; i < values.view().elements(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(values.as<float>()[i])));
    }
    return largest + (has_minima() ? 2 * 0.5 * 63 : 0);
  }
};

/// Inputs are not rounded, unlike in products that read all weights.
TEST_P(SparseLinearTest, IsAsExactAsFloat32) {
  const auto reference = make_reference_ops(Precision::f64);
  // One tile, whole ones, and a narrower one behind them.
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{256, 64}, {768, 192}, {256, 704}, {512, 1088}}) {
    const Buffer weight = weights(out, in);
    const Matrix exact = reference->prepare(weight);
    const double largest = largest_term(weight);
    for (int64_t rows = 1; rows <= 8; ++rows) {
      const Buffer given = sparse_rows(rows, in, 0.04);
      Buffer x(DType::bf16, {rows, in}), x64(DType::f64, {rows, in}), y64(DType::f64, {rows, out});
      convert(given, x);
      convert(x, x64);
      reference->linear({.x = x64, .w = &exact, .y = y64});
      const auto check = [&](Ops& ops) {
        const std::vector<float> y = product(ops, ops.prepare(weight, true), x);
        for (int64_t i = 0; i < rows * out; ++i) {
          double terms = 0;
          for (int64_t k = 0; k < in; ++k) terms += std::abs(x64.as<double>()[i / out * in + k]);
          ASSERT_NEAR(static_cast<double>(y[static_cast<size_t>(i)]), y64.as<double>()[i],
                      sum_error(in) * terms * largest)
              << in << " to " << out << ", row " << i / out << " of " << rows << ", output " << i % out;
        }
      };
      on_every_target(check);
      for (const int threads : {1, 5}) check(*make_cpu_ops(Precision::f32, threads));
    }
  }
}

TEST_P(SparseLinearTest, RowsDoNotDependOnEachOther) {
  const Buffer weight = weights();
  for (const int64_t rows : {2, 3, 5, 8}) {
    for (const bool dense_rows : {false, true}) {
      const Buffer x = sparse_rows(rows, kIn, 0.05, dense_rows);
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

TEST_P(SparseLinearTest, OtherRowsAreComputedAsIfNotAnnounced) {
  const Buffer weight = weights();
  for (const int64_t rows : {1, 3, 8, 9}) {
    const Buffer x = sparse_rows(rows, kIn, rows > 8 ? 0.05 : 0.6);
    on_every_target([&](Ops& ops) {
      const std::vector<float> announced = product(ops, ops.prepare(weight, true), x);
      ASSERT_EQ(announced, product(ops, ops.prepare(weight, false), x)) << rows << " rows";
    });
  }
}

TEST_P(SparseLinearTest, DoesNotReadTheWeightsOfZeros) {
  const auto poisoned = [](int64_t i) { return i / block() % 4 != 1; };  // whole blocks: one has one scale
  const Buffer weight = weights(kOut, kIn, poisoned);
  for (const int64_t rows : {1, 3, 8}) {
    Buffer x(DType::f32, {rows, kIn});
    for (int64_t i = 0; i < rows * kIn; ++i) {
      x.as<float>()[i] = poisoned(i % kIn) || i % 3 != 0 ? 0.0f : 1.0f;
    }
    on_every_target([&](Ops& ops) {
      for (const float y : product(ops, ops.prepare(weight, true), x)) ASSERT_TRUE(std::isfinite(y));
      // Otherwise they are read, so that this test could see it.
      EXPECT_TRUE(std::isnan(product(ops, ops.prepare(weight, false), x)[0]));
    });
  }
}

TEST_P(SparseLinearTest, ZerosAndWhatIsNotFinite) {
  const Buffer weight = weights();
  for (const int64_t rows : {1, 2, 7}) {
    Buffer x(DType::f32, {rows, kIn});
    on_every_target([&](Ops& ops) {
      const Matrix w = ops.prepare(weight, true);
      std::fill_n(x.as<float>(), rows * kIn, 0.0f);
      for (const float y : product(ops, w, x)) ASSERT_EQ(y, 0);
      x.as<float>()[17] = std::numeric_limits<float>::quiet_NaN();
      const std::vector<float> y = product(ops, w, x);
      for (size_t i = 0; i < y.size(); ++i) {
        if (i < kOut) {
          ASSERT_TRUE(std::isnan(y[i]));
        } else {
          ASSERT_EQ(y[i], 0);
        }
      }
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SparseLinearTest,
                         testing::Values(DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_0,
                                         DType::q4_k, DType::q5_k, DType::q6_k),
                         [](const auto& one) { return std::string(name(one.param)); });

}  // namespace
}  // namespace rwkvx::test
