// Losses of a streamed text are those of its logits all at once.
#include "runtime/token_losses.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

TEST(CrossEntropyTest, IsTheDefinition) {
  const std::vector<float> logits{1, -2, 0.5f, 3};
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l));
  for (int32_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(cross_entropy(logits, t),
                -std::log(std::exp(static_cast<double>(logits[static_cast<size_t>(t)])) / sum), 1e-6);
  }
  // Neither overflow nor underflow.
  EXPECT_NEAR(cross_entropy(std::vector<float>{1e4f, 1e4f}, 0), std::log(2.0), 1e-6);
  EXPECT_NEAR(cross_entropy(std::vector<float>{-1e4f, 1e4f}, 0), 2e4, 1e-2);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(cross_entropy(std::vector<float>{1, nan}, 0)));
  EXPECT_TRUE(std::isnan(cross_entropy(std::vector<float>{nan, 1}, 1)));
}

class TokenLossesTest : public ::testing::Test {
 protected:
  static std::shared_ptr<const Model> model() {
    static const auto model = test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", Precision::f32);
    return model;
  }
};

TEST_F(TokenLossesTest, EqualThoseOfAllLogitsAtOnce) {
  constexpr size_t kLength = 2500;  // more than a slice
  const auto tokens = test::random_tokens(kLength, model()->config().vocab, 5);
  State state = model()->new_state();
  const std::vector<float> logits = test::run(*model(), state, tokens);
  const auto V = static_cast<size_t>(model()->config().vocab);
  TokenLosses losses(model());
  uint64_t last = 0;
  const auto got = losses.of(tokens, [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, kLength - 1);
    EXPECT_GE(done, last);
    last = done;
  });
  EXPECT_EQ(last, kLength - 1);
  ASSERT_EQ(got.size(), kLength - 1);
  for (size_t i = 0; i < got.size(); ++i) {
    double sum = 0;
    const float* row = &logits[i * V];
    for (size_t v = 0; v < V; ++v) sum += std::exp(static_cast<double>(row[v]));
    const double expected = std::log(sum) - static_cast<double>(row[static_cast<size_t>(tokens[i + 1])]);
    // Logits reach about 20; float32 sums in another order move them by some 1e-5.
    ASSERT_NEAR(static_cast<double>(got[i]), expected, 1e-3) << i;
  }
  // Each text begins anew.
  EXPECT_NEAR(losses.of(std::span(tokens).first(2))[0], got[0], 1e-3);
}

TEST_F(TokenLossesTest, ShortTextsAndBadTokens) {
  TokenLosses losses(model());
  EXPECT_TRUE(losses.of({}).empty());
  EXPECT_TRUE(losses.of(std::vector<int32_t>{5}).empty());
  EXPECT_THAT(testing::error_of([&] {
                losses.of(std::vector<int32_t>{1, 300, 2});
              }),
              ::testing::HasSubstr("token 300 at position 1"));
  EXPECT_THAT(testing::error_of([&] {
                losses.of(std::vector<int32_t>{1, 2, 256});
              }),
              ::testing::HasSubstr("token 256 at position 2"));
}

}  // namespace
}  // namespace rwkvx
