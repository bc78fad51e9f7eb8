#include "ops/cuda/cuda_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "harness.h"

namespace rwkvx::test {
namespace {

/// Every operation in both precisions, on the first GPU, or emulated (tests/emulated_gpu).
class CudaOpsTest : public testing::TestWithParam<std::tuple<std::string, Precision>> {
 protected:
  void SetUp() override {
    try {
      ops_ = make_cuda_ops(std::get<1>(GetParam()), 0);
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  std::unique_ptr<Ops> ops_;
};

TEST_P(CudaOpsTest, AgreesWithReference) {
  double worst = 0;
  std::string worst_case;
  for (const auto& [operation, cases] : operations()) {
    if (operation != std::get<0>(GetParam())) continue;
    for (const auto& one : cases(std::get<1>(GetParam()))) {
      const double part = compare_with_reference(*one, *ops_);
      if (part >= worst) worst_case = one->describe();
      worst = std::max(worst, part);
    }
  }
  std::cout << "[ measured ] " << worst << " of the bound: " << worst_case << '\n';
}

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [operation, cases] : operations()) all.push_back(operation);
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, CudaOpsTest,
                         testing::Combine(testing::ValuesIn(names()),
                                          testing::Values(Precision::f32, Precision::bf16)),
                         [](const auto& one) {
                           return std::get<0>(one.param) + "_" + std::string(name(std::get<1>(one.param)));
                         });

TEST(CudaOps, RefusesDouble) {
  EXPECT_THAT([] { make_cuda_ops(Precision::f64, 0); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("CUDA")));
}

}  // namespace
}  // namespace rwkvx::test
