#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <ostream>
#include <random>

#include "instruction_sets.h"
#include "tensor/buffer.h"

/// Queries of a long prompt, and those for which a store keeps something, choose among many chunks by bounds
/// of their gates; one query by itself computes all gates. All must choose the same chunks, whatever the
/// keys.
namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

enum class Sums { normal, common, outlier, equal, tiny, huge, mixed, infinite, some_nan };

struct Choice {
  std::string name;
  Sums sums;
  int64_t rows = 150, length = 1400, chunk = 4, top_k = 5, part = 0;
};

void PrintTo(const Choice& choice, std::ostream* to) { *to << choice.name; }

class ChunkChoiceTest : public testing::TestWithParam<Choice> {
 protected:
  void SetUp() override {
    const Choice& c = GetParam();
    const int64_t chunks = (c.length + c.chunk - 1) / c.chunk, parts = c.part > 0 ? c.chunk / c.part : 1;
    for (int64_t j = 0; j < chunks; ++j) {
      pages_.emplace_back(DType::f32, Shape{c.chunk, N});
      fill(pages_.back(), Sums::normal, j);
      keys_.push_back(pages_.back().view().data());
      sums_.emplace_back(DType::f32, Shape{parts, N});
      fill(sums_.back(), c.sums, j);
      key_sums_.push_back(sums_.back().view().data());
    }
    q_ = Buffer(DType::f32, {c.rows, N});
    fill(q_, c.sums == Sums::tiny ? Sums::tiny : Sums::normal, 0);
  }

  void fill(Buffer& to, Sums sums, int64_t chunk) {
    std::normal_distribution<float> normal;
    const int64_t count = to.view().elements();
    for (int64_t i = 0; i < count; ++i) {
      float x = normal(random_);
      switch (sums) {
        case Sums::normal:
          break;
        case Sums::common:  // all alike but for little
          x = 1e-3f * x + 30 * std::cos(static_cast<float>(i % N));
          break;
        case Sums::outlier:
          x *= i % N == 7 ? 100.0f : 1.0f;
          break;
        case Sums::equal:
          x = static_cast<float>(i % N % 5) - 2 + static_cast<float>(chunk % 3);
          break;
        case Sums::tiny:
          x *= 1e-17f;
          break;
        case Sums::huge:
          x *= 1e18f;
          break;
        case Sums::mixed:
          x *= std::pow(10.0f, static_cast<float>(chunk % 25) - 12);
          break;
        case Sums::infinite:
          if (chunk % 50 == 3 && i % N == 11) x = x > 0 ? kInfinity : -kInfinity;
          break;
        case Sums::some_nan:  // in whole chunks, and in one part of others
          if (chunk % 50 == 3 || (chunk % 7 == 2 && i / N == chunk % 3)) x = NAN;
          break;
      }
      to.as<float>()[i] = x;
    }
  }

  /// [rows, top_k − 1], for rows [begin, end), which end where the store does.
  std::vector<int32_t> chosen(Ops& ops, int64_t begin, int64_t end,
                              std::unique_ptr<KvDerived>* derived = nullptr) {
    const Choice& c = GetParam();
    const int64_t rows = end - begin;
    KvChunks kv;
    kv.chunk_size = c.chunk;
    kv.length = c.length - c.rows + end;
    kv.dtype = DType::f32;
    kv.keys = kv.values = keys_;
    kv.key_sums = key_sums_;
    if (c.part > 0) kv.part = c.part, kv.part_sums = key_sums_;
    kv.derived = derived;
    const std::vector<int64_t> offsets{0, rows};
    Buffer y(ops.active(), {rows, N}), choice(DType::i32, {rows, 1, c.top_k - 1});
    ChunkAttention call;
    call.q = ConstView(q_.as<float>() + begin * N, DType::f32, {rows, N});
    call.offsets = offsets;
    call.kv = std::span(&kv, 1);
    call.top_k = c.top_k;
    call.y = y;
    call.chosen = choice;
    ops.chunk_attention(call);
    return {choice.as<int32_t>(), choice.as<int32_t>() + choice.view().elements()};
  }

  std::mt19937 random_{7};
  std::vector<Buffer> pages_, sums_;
  std::vector<void*> keys_, key_sums_;
  Buffer q_;
};

TEST_P(ChunkChoiceTest, DoesNotDependOnTheOtherQueries) {
  const Choice& c = GetParam();
  on_every_target([&](Ops& ops) {
    std::unique_ptr<KvDerived> kept, later;
    const std::vector<int32_t> together = chosen(ops, 0, c.rows), with_kept = chosen(ops, 0, c.rows, &kept);
    EXPECT_EQ(with_kept, together);
    int wrong = 0, wrong_bounded = 0;
    for (int64_t row = 0; row < c.rows; ++row) {
      const std::vector<int32_t> alone = chosen(ops, row, row + 1),
                                 bounded = chosen(ops, row, row + 1, &later);
      const auto expected = together.begin() + row * (c.top_k - 1);
      if (!std::equal(alone.begin(), alone.end(), expected)) ++wrong;
      if (!std::equal(bounded.begin(), bounded.end(), expected)) ++wrong_bounded;
    }
    EXPECT_EQ(wrong, 0) << "of " << c.rows << " rows";
    EXPECT_EQ(wrong_bounded, 0) << "of " << c.rows << " rows";
    EXPECT_GE(*std::min_element(together.begin(), together.end()),
              c.sums == Sums::infinite || c.sums == Sums::huge ? -1 : 0);
  });
}

INSTANTIATE_TEST_SUITE_P(
    All, ChunkChoiceTest,
    testing::Values(
        Choice{"Normal", Sums::normal}, Choice{"MuchInCommon", Sums::common},
        Choice{"Outliers", Sums::outlier}, Choice{"Ties", Sums::equal}, Choice{"Tiny", Sums::tiny},
        Choice{"Huge", Sums::huge}, Choice{"AllMagnitudes", Sums::mixed}, Choice{"Infinite", Sums::infinite},
        Choice{"OneSlot", Sums::normal, 150, 1400, 4, 2}, Choice{"ManySlots", Sums::normal, 150, 1400, 4, 40},
        Choice{"MoreSlotsThanGuesses", Sums::normal, 70, 1400, 4, 200},
        Choice{"OddChunks", Sums::normal, 203, 2501, 7, 4}, Choice{"OneToken", Sums::normal, 90, 333, 1, 4},
        Choice{"Parts", Sums::normal, 150, 5200, 16, 4, 4}, Choice{"SomeNan", Sums::some_nan},
        Choice{"PartsNan", Sums::some_nan, 150, 5200, 16, 4, 4},
        Choice{"Growing", Sums::normal, 1700, 2900, 4, 3}, Choice{"FewChunks", Sums::normal, 100, 290, 4, 3}),
    [](const auto& one) { return one.param.name; });

}  // namespace
}  // namespace rwkvx::test
