// Token by token with weights of every type, beside the reference.

#include <fmt/format.h>

#include "support.h"
#include "tensor_file.h"

namespace rwkvx {
namespace {

class StepsTest : public testing::TestWithParam<std::tuple<const char*, DType>> {
 protected:
  const char* backend() const { return std::get<0>(GetParam()); }
  DType type() const { return std::get<1>(GetParam()); }
  /// Of 256 channels, so that every quantised type fits all projections.
  Path file() const {
    const Path wide = folder_ / "wide.safetensors", path = folder_ / "model.gguf";
    test::wide_model(256, 3, 2).write(wide);
    const auto source = open_checkpoint(wide, {.chunk_size = 8, .top_k = 3});
    test::write_quantised(*source, type(), path);
    return path;
  }
  const test::TemporaryFolder folder_;
};

TEST_P(StepsTest, AreThoseOfTheReference) {
  const std::string why = test::unavailable(backend());
  if (!why.empty()) GTEST_SKIP() << why;
  const Path path = file();
  const auto model = test::open_model(path, backend(), Precision::bf16);
  const auto reference = test::open_model(path, "reference", Precision::f32);
  const auto tokens = test::random_tokens(40, 256, 5);
  State expected = reference->new_state(), got = model->new_state(), whole = model->new_state();
  const auto want = test::run(*reference, expected, tokens);
  const std::vector<size_t> ones(tokens.size(), 1);
  const double steps = test::row_error(test::run(*model, got, tokens, ones), want, 256, 0.8);
  const double at_once = test::row_error(test::run(*model, whole, tokens), want, 256, 0.8);
  std::cout << "[ measured ] " << steps << ", all rows at once " << at_once << '\n';
  // Inputs of products are rounded to bfloat16, and chunks that almost tie may be chosen otherwise. Beside
  // quantised weights the cpu rounds them to 8 bits of their block's largest, three times as coarse.
  const bool by_bytes = backend() == std::string("cpu") && is_quantised(type());
  EXPECT_LE(steps, by_bytes ? 0.06 : 0.03);
  EXPECT_LE(at_once, by_bytes ? 0.06 : 0.03);
}

TEST_P(StepsTest, KeysAreStoredAsItsWeightsAsk) {
  const std::string why = test::unavailable(backend());
  if (!why.empty()) GTEST_SKIP() << why;
  const Path path = file();
  const bool small = backend() == std::string("cpu") && is_quantised(type());
  EXPECT_EQ(test::open_model(path, backend(), Precision::bf16)->new_state().kv(0).dtype(),
            small ? DType::i8 : DType::bf16);
  EXPECT_EQ(test::open_model(path, backend(), Precision::f32)->new_state().kv(0).dtype(), DType::f32);
  KvOptions asked;
  asked.dtype = DType::bf16;
  EXPECT_EQ(test::open_model(path, backend(), Precision::bf16, {}, asked)->new_state().kv(0).dtype(),
            DType::bf16);
}

INSTANTIATE_TEST_SUITE_P(Types, StepsTest,
                         testing::Combine(testing::Values("cpu", "cuda"),
                                          testing::Values(DType::bf16, DType::f16, DType::q8_0, DType::q4_0,
                                                          DType::q4_k, DType::q5_k, DType::q6_k)),
                         [](const auto& one) {
                           return fmt::format("{}_{}", std::get<0>(one.param), name(std::get<1>(one.param)));
                         });

}  // namespace
}  // namespace rwkvx
