#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "hwy/highway.h"
#include "ops/cpu/cpu_ops.h"
#include "tensor/convert.h"

/// The instruction sets that this processor has, and products on each.
namespace rwkvx::test {

/// Kernels that are not compiled for AVX3_DL take AVX3 beside it.
inline constexpr int64_t kVnni = HWY_AVX3_DL | HWY_AVX3;

inline std::string target_name(int64_t target) {
  return hwy::TargetName(target == kVnni ? int64_t{HWY_AVX3_DL} : target);
}

inline std::vector<int64_t> targets() {
  std::vector<int64_t> all;
  for (const int64_t target :
       {int64_t{HWY_SSE4}, int64_t{HWY_AVX2}, int64_t{HWY_AVX3}, kVnni, int64_t{HWY_NEON}}) {
    if ((hwy::SupportedTargets() & target) == target) all.push_back(target);
  }
  return all;
}

/// test(Ops&) in bf16 precision with two threads.
template <typename Test>
void on_every_target(Test test) {
  hwy::SetSupportedTargetsForTest(0);
  for (const int64_t target : targets()) {
    SCOPED_TRACE(target_name(target));
    hwy::SetSupportedTargetsForTest(target);
    test(*make_cpu_ops(Precision::bf16, 2));
    hwy::SetSupportedTargetsForTest(0);
  }
}

/// x · wᵀ, x rounded to the type that the backend multiplies with.
inline std::vector<float> product(Ops& ops, const Matrix& w, ConstView x) {
  Buffer active(ops.active(), x.shape()), y(DType::f32, {x.dim(0), w.out()});
  convert(x, active);
  ops.linear({.x = active, .w = &w, .y = y});
  return {y.as<float>(), y.as<float>() + y.view().elements()};
}

}  // namespace rwkvx::test
