#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "harness.h"
#include "ops/cpu/linear_tiles.h"
#include "tensor/convert.h"

/// Products by tiles: on every machine with tiles in plain C++, and with the processor's own where it has
/// them.
namespace rwkvx::test {
namespace {

constexpr DType kTypes[] = {DType::bf16, DType::f16,  DType::q8_0, DType::q4_0,
                            DType::q4_k, DType::q5_k, DType::q6_k};

Buffer random_tensor(DType type, Shape shape, uint64_t seed, double deviation = 1) {
  Buffer exact(DType::f32, shape), tensor(type, shape);
  Random random(seed);
  for (int64_t i = 0; i < exact.view().elements(); ++i) {
    exact.as<float>()[i] = static_cast<float>(deviation * random.normal());
  }
  convert(exact, tensor);
  return tensor;
}

std::vector<double> values_of(ConstView tensor) {
  Buffer exact(DType::f32, tensor.shape());
  convert(tensor, exact);
  return {exact.as<float>(), exact.as<float>() + exact.view().elements()};
}

/// Inputs that make blocks of every type, more than one piece of the inputs, and, for float types, no whole
/// tiles.
std::vector<int64_t> widths(DType type) {
  if (info(type).block_elements == 256) return {256, 1280};
  if (is_quantised(type)) return {32, 96, 1056};
  return {1, 31, 32, 64, 100, 1024, 1061};
}

class TileWeightsTest : public testing::TestWithParam<DType> {};

/// What the fast order gives is what the plain one gives.
TEST_P(TileWeightsTest, AsPlain) {
  if (cpu::fill_strip() == cpu::fill_strip_plain) GTEST_SKIP() << "this processor has one way only";
  cpu::ThreadPool pool(2);
  constexpr int64_t kOut = 64 + 16 + 3;
  for (const int64_t in : widths(GetParam())) {
    const Buffer weight = random_tensor(GetParam(), {kOut, in}, static_cast<uint64_t>(in));
    cpu::PackedBlocks packed;
    if (is_quantised(GetParam())) packed = cpu::pack_blocks(weight, pool);
    for (const int64_t first : {0, 64}) {
      for (int64_t input = 0; input < in; input += 256) {
        const int64_t steps = std::min<int64_t>(8, (in - input + 31) / 32);
        const cpu::StripOf strip{weight, is_quantised(GetParam()) ? &packed : nullptr, first, input, steps};
        const int64_t panels = (std::min<int64_t>(64, kOut - first) + 15) / 16;
        const auto size = static_cast<size_t>(4 * steps * cpu::kTileElements);
        for (int64_t part = 0; part < cpu::strip_parts(GetParam()); ++part) {
          std::vector<BFloat16> plain(size), fast(size);
          cpu::fill_strip_plain(strip, part, plain.data());
          cpu::fill_strip()(strip, part, fast.data());
          for (size_t i = 0; i < size; ++i) {
            const auto tile = static_cast<int64_t>(i) / cpu::kTileElements;
            if (tile / (2 * steps) * 2 + tile % 2 >= panels) continue;  // may hold anything
            const float expected = to_float(plain[i]), got = to_float(fast[i]);
            // Where scale and minimum are taken off in one step, the last bit of a bfloat16 may be another.
            const double bound = is_quantised(GetParam()) ? kBf16 * std::abs(expected) + 1e-6 : 0;
            ASSERT_NEAR(got, expected, bound) << in << " inputs, from " << input << ", outputs from " << first
                                              << ", part " << part << ", element " << i;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, TileWeightsTest, testing::ValuesIn(kTypes),
                         [](const auto& one) { return std::string(name(one.param)); });

struct Unit {
  const char* name;
  const cpu::TileUnit* (*get)();
};

class TileRowsTest : public testing::TestWithParam<std::tuple<Unit, DType>> {
 protected:
  void SetUp() override {
    unit_ = std::get<Unit>(GetParam()).get();
    if (unit_ == nullptr) GTEST_SKIP() << "this processor has no tiles";
  }
  DType type() const { return std::get<DType>(GetParam()); }

  struct Weights {
    Buffer values;
    std::optional<cpu::PackedBlocks> packed;
    Matrix matrix;
  };
  Weights weights(int64_t out, int64_t in) {
    Weights made{
        random_tensor(type(), {out, in}, static_cast<uint64_t>(out + in), 1 / std::sqrt(in)), {}, {}};
    if (is_quantised(type())) made.packed = cpu::pack_blocks(made.values, pool_);
    made.matrix.weight = made.values;
    return made;
  }
  void run(const Weights& w, ConstView x, View y, Activation activation = Activation::none,
           bool add = false) {
    LinearCall call;
    call.x = x;
    call.w = &w.matrix;
    call.y = y;
    call.activation = activation;
    call.add = add;
    const cpu::TileRows::Call one{&call, w.packed ? &*w.packed : nullptr};
    cpu::TileRows(pool_, *unit_).run({&one, 1});
  }

  const cpu::TileUnit* unit_ = nullptr;
  cpu::ThreadPool pool_{2};
};

TEST_P(TileRowsTest, AsSumsInFloat64) {
  for (const int64_t in : widths(type())) {
    for (const int64_t rows : {1, 16, 17, 33, 70}) {
      for (const int64_t out : {1, 48, 64, 200}) {
        if (rows * out * in > 4'000'000) continue;
        const Weights w = weights(out, in);
        const Buffer x = random_tensor(DType::bf16, {rows, in}, 7);
        const std::vector<double> exact_x = values_of(x), exact_w = values_of(w.values);
        for (const bool add : {false, true}) {
          Buffer y(DType::f32, {rows, out});
          std::fill_n(y.as<float>(), rows * out, 0.5f);
          run(w, x, y, Activation::none, add);
          for (int64_t r = 0; r < rows; ++r) {
            for (int64_t o = 0; o < out; ++o) {
              double sum = add ? 0.5 : 0, squares_x = 0, squares_w = 0;
              for (int64_t k = 0; k < in; ++k) {
                const double a = exact_x[static_cast<size_t>(r * in + k)];
                const double b = exact_w[static_cast<size_t>(o * in + k)];
                sum += a * b;
                squares_x += a * a;
                squares_w += b * b;
              }
              // Quantised weights are rounded to bfloat16.
              const double unit = sum_error(in) + (is_quantised(type()) ? kBf16 : 0);
              ASSERT_NEAR(y.as<float>()[r * out + o], sum, unit * std::sqrt(squares_x * squares_w) + kF32)
                  << rows << " × " << in << " → " << out << ", row " << r << ", output " << o;
            }
          }
        }
      }
    }
  }
}

/// A part of 1024 rows and a rest, more than one block of outputs, results in bfloat16.
TEST_P(TileRowsTest, ManyRowsAndActivations) {
  constexpr int64_t kRows = 1030, kOut = 300;
  const int64_t in = std::max<int64_t>(64, info(type()).block_elements);
  const Weights w = weights(kOut, in);
  const Buffer x = random_tensor(DType::bf16, {kRows, in}, 3);
  Buffer plain(DType::f32, {kRows, kOut});
  run(w, x, plain);
  const std::vector<double> sums = values_of(plain);
  for (const DType result : {DType::f32, DType::bf16}) {
    for (const Activation activation : {Activation::tanh, Activation::sigmoid, Activation::relu_squared}) {
      Buffer y(result, {kRows, kOut});
      run(w, x, y, activation);
      const std::vector<double> got = values_of(y);
      for (size_t i = 0; i < sums.size(); ++i) {
        const double positive = std::max(sums[i], 0.0);
        const double expected = activation == Activation::tanh      ? std::tanh(sums[i])
                                : activation == Activation::sigmoid ? 1 / (1 + std::exp(-sums[i]))
                                                                    : positive * positive;
        const double unit = result == DType::bf16 ? kBf16 : 8 * kF32;
        ASSERT_NEAR(got[i], expected, unit * std::abs(expected) + 1e-12) << i;
      }
    }
  }
}

/// Bit for bit, also beside rows that are no numbers.
TEST_P(TileRowsTest, RowsDoNotDependOnEachOther) {
  constexpr int64_t kRows = 75, kOut = 70;
  const int64_t in = std::max<int64_t>(96, info(type()).block_elements);
  const Weights w = weights(kOut, in);
  Buffer x = random_tensor(DType::bf16, {kRows, in}, 5), y(DType::f32, {kRows, kOut});
  x.as<BFloat16>()[3 * in + 5] = to_bfloat16(std::numeric_limits<float>::quiet_NaN());
  for (const bool add : {false, true}) {
    const auto product = [&](ConstView rows, View to) {
      for (int64_t i = 0; i < to.elements(); ++i) to.as<float>()[i] = 0.3f;
      run(w, rows, to, Activation::none, add);
    };
    product(x, y);
    for (int64_t o = 0; o < kOut; ++o) EXPECT_TRUE(std::isnan(y.as<float>()[3 * kOut + o]));
    for (const int64_t rows : {1, 5, 40, 71}) {
      Buffer some(DType::f32, {rows, kOut});
      product(x.view().rows(kRows - rows, rows), some);
      EXPECT_EQ(std::memcmp(some.as<float>(), y.as<float>() + (kRows - rows) * kOut, some.view().bytes()), 0)
          << rows << (add ? " added" : "");
      for (int64_t i = 0; i < rows * kOut; ++i) ASSERT_TRUE(std::isfinite(some.as<float>()[i])) << i;
    }
  }
}

/// As one call with each input of its own.
TEST_P(TileRowsTest, CallsShareInputs) {
  constexpr int64_t kRows = 50, kOut = 90;
  const int64_t in = std::max<int64_t>(64, info(type()).block_elements);
  const Weights w[] = {weights(kOut, in), weights(40, in), weights(64, in)};
  const Buffer x[] = {random_tensor(DType::bf16, {kRows, in}, 1), random_tensor(DType::bf16, {kRows, in}, 2)};
  const size_t input_of[] = {0, 1, 0};
  std::vector<Buffer> together;
  for (const Weights& one : w) together.emplace_back(DType::f32, Shape{kRows, one.matrix.out()});
  std::vector<LinearCall> linear;
  for (size_t i = 0; i < 3; ++i) linear.push_back({.x = x[input_of[i]], .w = &w[i].matrix, .y = together[i]});
  std::vector<cpu::TileRows::Call> calls;
  for (size_t i = 0; i < 3; ++i) calls.push_back({&linear[i], w[i].packed ? &*w[i].packed : nullptr});
  cpu::TileRows(pool_, *unit_).run(calls);
  for (size_t i = 0; i < 3; ++i) {
    Buffer alone(DType::f32, {kRows, w[i].matrix.out()});
    run(w[i], x[input_of[i]], alone);
    EXPECT_EQ(std::memcmp(alone.as<float>(), together[i].as<float>(), alone.view().bytes()), 0) << i;
  }
}

const Unit kUnits[] = {{"plain", [] { return &cpu::emulated_tile_unit(); }}, {"amx", cpu::tile_unit}};
INSTANTIATE_TEST_SUITE_P(Units, TileRowsTest,
                         testing::Combine(testing::ValuesIn(kUnits), testing::ValuesIn(kTypes)),
                         [](const auto& one) {
                           return fmt::format("{}_{}", std::get<Unit>(one.param).name,
                                              name(std::get<DType>(one.param)));
                         });

/// Rows of x as TileFewRows::x, [in / 2, rows, 2].
std::vector<BFloat16> pairs_of(const Buffer& x, int64_t first, int64_t rows) {
  const int64_t in = x.view().dim(1);
  std::vector<BFloat16> pairs;
  for (int64_t i = 0; i < in; i += 2) {
    for (int64_t r = first; r < first + rows; ++r) {
      const BFloat16* pair = x.as<BFloat16>() + r * in + i;
      pairs.insert(pairs.end(), {pair[0], pair[1]});
    }
  }
  return pairs;
}

class TileFewRowsTest : public testing::TestWithParam<Unit> {};

TEST_P(TileFewRowsTest, AsSumsInFloat64) {
  const cpu::TileUnit* const unit = GetParam().get();
  if (unit == nullptr) GTEST_SKIP() << "this processor has no tiles";
  for (const int64_t rows : {1, 2, 7, 15, 16}) {
    for (const int64_t steps : {1, 2, 3, 8, 9, 24}) {
      for (const int64_t tiles : {1, 3, 4, 9}) {
        const int64_t in = steps * cpu::kTileDepth, out = tiles * cpu::kTileRows;
        const Buffer w = random_tensor(DType::bf16, {out, in}, 1, 1 / std::sqrt(in));
        const Buffer x = random_tensor(DType::bf16, {rows, in}, 2, 1);
        const auto *weights = w.as<BFloat16>(), *inputs = x.as<BFloat16>();
        const std::vector<BFloat16> pairs = pairs_of(x, 0, rows);
        std::vector<float> sums(static_cast<size_t>(out * rows) + 1, 7.0f);
        unit->few_rows({weights, tiles, pairs.data(), rows, steps, sums.data()});
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t r = 0; r < rows; ++r) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < in; ++i) {
              const double term = double{to_float(weights[o * in + i])} * to_float(inputs[r * in + i]);
              sum += term;
              size += std::abs(term);
            }
            ASSERT_NEAR(sums[static_cast<size_t>(o * rows + r)], sum, size * static_cast<double>(in) * 6e-8)
                << rows << " rows, " << steps << " steps, output " << o << ", row " << r;
          }
        }
        ASSERT_EQ(sums.back(), 7.0f) << "nothing behind the results is written";
      }
    }
  }
}

TEST_P(TileFewRowsTest, RowsDoNotDependOnEachOther) {
  const cpu::TileUnit* const unit = GetParam().get();
  if (unit == nullptr) GTEST_SKIP() << "this processor has no tiles";
  constexpr int64_t kRows = 16, kTiles = 4, kOut = kTiles * cpu::kTileRows;
  for (const int64_t steps : {2, 3, 8, 9, 24}) {
    const int64_t in = steps * cpu::kTileDepth;
    const Buffer w = random_tensor(DType::bf16, {kOut, in}, 1, 1);
    const Buffer x = random_tensor(DType::bf16, {kRows, in}, 2, 1);
    const auto sums = [&](int64_t first, int64_t rows) {
      const std::vector<BFloat16> pairs = pairs_of(x, first, rows);
      std::vector<float> made(static_cast<size_t>(kOut * rows));
      unit->few_rows({w.as<BFloat16>(), kTiles, pairs.data(), rows, steps, made.data()});
      return made;
    };
    const std::vector<float> together = sums(0, kRows);
    for (int64_t r = 0; r < kRows; ++r) {
      const std::vector<float> alone = sums(r, 1);
      for (int64_t o = 0; o < kOut; ++o) {
        ASSERT_EQ(alone[static_cast<size_t>(o)], together[static_cast<size_t>(o * kRows + r)])
            << steps << " steps, row " << r << ", output " << o;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Units, TileFewRowsTest, testing::ValuesIn(kUnits),
                         [](const auto& one) { return std::string(one.param.name); });

}  // namespace
}  // namespace rwkvx::test
