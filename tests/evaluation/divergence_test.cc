#include "evaluation/divergence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx {
namespace {

TEST(Divergence, OfOneToken) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4), shifted by constants.
  const std::vector<float> p{std::log(2.0f) + 7, 7, 7}, q{-3, std::log(2.0f) - 3, -3};
  const DivergenceSums sums = divergence(p, q, 1);
  EXPECT_EQ(sums.tokens, 1);
  EXPECT_NEAR(sums.source_nats, std::log(4.0), 1e-6);
  EXPECT_NEAR(sums.nats, std::log(2.0), 1e-6);
  EXPECT_NEAR(sums.kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(sums.same_top, 0);
  const DivergenceSums same = divergence(p, p, 0);
  EXPECT_EQ(same.kl, 0);
  EXPECT_EQ(same.same_top, 1);
  EXPECT_TRUE(std::isnan(divergence(p, std::vector<float>{0, NAN, 0}, 0).kl));
}

TEST(Divergence, OfModels) {
  const test::TemporaryFolder folder;
  test::small_model(2, 1).write(folder / "a");
  test::TensorFile other = test::small_model(2, 1);
  other.convert("rwkv.head.weight", DType::bf16);
  other.write(folder / "b");
  const auto a = test::open_model(folder / "a", "cpu", Precision::f32);
  const auto b = test::open_model(folder / "b", "cpu", Precision::f32);
  const auto tokens = test::random_tokens(3000, 256, 1);  // several slices
  uint64_t last = 0;
  Divergence same(a, a), different(a, b);
  const DivergenceSums none = same.of(tokens, [&](uint64_t done, uint64_t total) {
    EXPECT_EQ(total, 2999u);
    last = done;
  });
  EXPECT_EQ(last, 2999u);
  EXPECT_EQ(none.tokens, 2999);
  EXPECT_EQ(none.kl, 0);
  EXPECT_EQ(none.same_top, 2999);
  EXPECT_EQ(none.nats, none.source_nats);
  // Against the definition, over the logits of one pass.
  State state_a = a->new_state(), state_b = b->new_state();
  const auto first = std::span(tokens).first(2999);
  const auto p = test::run(*a, state_a, first), q = test::run(*b, state_b, first);
  DivergenceSums want;
  for (size_t i = 0; i < 2999; ++i) {
    want += divergence(std::span(p).subspan(i * 256, 256), std::span(q).subspan(i * 256, 256), tokens[i + 1]);
  }
  const DivergenceSums got = different.of(tokens);
  EXPECT_GT(got.kl, 0);
  EXPECT_NEAR(got.kl, want.kl, 1e-3 * want.kl);
  EXPECT_NEAR(got.nats, want.nats, 1e-5 * want.nats);
  EXPECT_EQ(different.of(std::span(tokens).first(1)).tokens, 0);
}

TEST(Divergence, OtherVocabulariesAreRefused) {
  const test::TemporaryFolder folder;
  test::small_model(1, 0).write(folder / "a");
  const auto a = test::open_model(folder / "a", "cpu", Precision::f32);
  const auto b = test::open_model(test::data("goldens/rwkv7/model.safetensors"), "cpu", Precision::f32);
  EXPECT_THAT([&] { Divergence(a, b); }, testing::ThrowsMessage<Error>(testing::HasSubstr("vocabulary")));
}

}  // namespace
}  // namespace rwkvx
