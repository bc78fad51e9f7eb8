#include <gtest/gtest.h>

#include "ops/ops.h"

namespace rwkvx {
namespace {

/// Without this, tests that skip where there is no GPU would skip here too if the wrong library were linked.
TEST(EmulatedGpu, IsTheGpuThatcudaTestsHave) {
  EXPECT_NO_THROW(make_ops({.backend = "cuda", .precision = Precision::f32}));
}

}  // namespace
}  // namespace rwkvx
