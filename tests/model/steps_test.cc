// Token by token on a GPU, with weights of every type, beside the reference.

#include "support.h"
#include "tensor_file.h"

namespace rwkvx {
namespace {

class StepsTest : public testing::TestWithParam<DType> {
 protected:
  /// Of 256 channels, so that every quantised type fits all projections.
  Path model() const {
    const Path wide = folder_ / "wide.safetensors", path = folder_ / "model.gguf";
    test::wide_model(256, 3, 2).write(wide);
    const auto source = open_checkpoint(wide, {.chunk_size = 8, .top_k = 3});
    test::write_quantised(*source, GetParam(), path);
    return path;
  }
  const test::TemporaryFolder folder_;
};

TEST_P(StepsTest, AreThoseOfTheReference) {
  const std::string why = test::unavailable("cuda");
  if (!why.empty()) GTEST_SKIP() << why;
  const Path path = model();
  const auto gpu = test::open_model(path, "cuda", Precision::bf16);
  const auto reference = test::open_model(path, "reference", Precision::f32);
  const auto tokens = test::random_tokens(40, 256, 5);
  State expected = reference->new_state(), got = gpu->new_state(), whole = gpu->new_state();
  const auto want = test::run(*reference, expected, tokens);
  const std::vector<size_t> ones(tokens.size(), 1);
  const double steps = test::row_error(test::run(*gpu, got, tokens, ones), want, 256, 0.8);
  const double at_once = test::row_error(test::run(*gpu, whole, tokens), want, 256, 0.8);
  std::cout << "[ measured ] " << steps << ", all rows at once " << at_once << '\n';
  // Inputs of products are rounded to bfloat16, and chunks that almost tie may be chosen otherwise.
  EXPECT_LE(steps, 0.03);
  EXPECT_LE(at_once, 0.03);
}

INSTANTIATE_TEST_SUITE_P(Types, StepsTest,
                         testing::Values(DType::bf16, DType::f16, DType::q8_0, DType::q4_0, DType::q4_k,
                                         DType::q5_k, DType::q6_k),
                         [](const auto& one) { return "cuda_" + std::string(name(one.param)); });

}  // namespace
}  // namespace rwkvx
