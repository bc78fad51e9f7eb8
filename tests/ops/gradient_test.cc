#include <gtest/gtest.h>

#include "harness.h"

namespace rwkvx::test {
namespace {

/// Every backward operation of the reference against difference quotients of its forward.
class GradientTest : public testing::TestWithParam<std::string> {};

TEST_P(GradientTest, IsTheLimitOfDifferences) {
  for (const auto& [operation, cases] : operations()) {
    if (operation != GetParam()) continue;
    for (const auto& one : cases(Precision::f64)) {
      if (const auto* gradient = dynamic_cast<const GradientCase*>(one.get())) {
        compare_with_differences(*gradient);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Reference, GradientTest,
                         testing::Values("embed_backward", "layer_norm_backward", "token_shift_backward",
                                         "linear_backward", "wkv7_operands_backward", "wkv7_backward",
                                         "wkv7_output_backward", "chunk_attention_backward", "gate_loss",
                                         "pointing_loss", "cross_entropy"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace rwkvx::test
