#include "ops/cpu/cpu_ops.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <thread>

#include "base/error.h"
#include "harness.h"
#include "instruction_sets.h"

namespace rwkvx::test {
namespace {

/// Every operation, on every instruction set that this processor has, in both precisions.
struct Setup {
  std::string operation;
  int64_t target;
  Precision precision;
  bool tiles = false;
};

void PrintTo(const Setup& setup, std::ostream* out) {
  *out << setup.operation << " " << target_name(setup.target) << " " << name(setup.precision)
       << (setup.tiles ? " tiles" : "");
}

std::vector<Setup> setups() {
  std::vector<Setup> all;
  for (const auto& [operation, cases] : operations()) {
    for (const int64_t target : targets()) {
      for (const Precision precision : {Precision::f32, Precision::bf16}) {
        all.push_back({operation, target, precision});
      }
      // What uses tiles, with the processor's or with emulated ones.
      const bool products = operation == "linear" || operation == "norm_shift_linear";
      const bool attention = operation == "chunk_attention" || operation == "kv_append";
      if (target == targets().back() && (products || attention || operation == "wkv7_step")) {
        all.push_back({operation, target, Precision::bf16, true});
      }
    }
  }
  return all;
}

class CpuOpsTest : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override { hwy::SetSupportedTargetsForTest(GetParam().target); }
  void TearDown() override { hwy::SetSupportedTargetsForTest(0); }
};

TEST_P(CpuOpsTest, AgreesWithReference) {
  const cpu::TileUnit* const own = cpu::tile_unit();
  const cpu::TileUnit* const tiles = own != nullptr ? own : &cpu::emulated_tile_unit();
  const auto ops = make_cpu_ops(GetParam().precision, 2, GetParam().tiles ? tiles : nullptr);
  double worst = 0;
  std::string worst_case;
  for (const auto& [operation, cases] : operations()) {
    if (operation != GetParam().operation) continue;
    for (const auto& one : cases(GetParam().precision)) {
      const double part = compare_with_reference(*one, *ops);
      if (part >= worst) worst_case = one->describe();
      worst = std::max(worst, part);
    }
  }
  RecordProperty("largest_error_in_parts_of_its_bound", std::to_string(worst));
  RecordProperty("at", worst_case);
}

INSTANTIATE_TEST_SUITE_P(All, CpuOpsTest, testing::ValuesIn(setups()), [](const auto& one) {
  const Setup& setup = one.param;
  return setup.operation + "_" + target_name(setup.target) + "_" + std::string(name(setup.precision)) +
         (setup.tiles ? "_tiles" : "");
});

/// Any number of threads gives the same numbers.
TEST(CpuOps, ThreadCountsAgreeWithReference) {
  for (const int threads : {1, 3, 5}) {
    const auto ops = make_cpu_ops(Precision::bf16, threads);
    for (const auto& [operation, cases] : operations()) {
      size_t i = 0;
      for (const auto& one : cases(Precision::bf16)) {
        if (i++ % 7 == 0) compare_with_reference(*one, *ops);
      }
    }
  }
}

TEST(CpuOps, TwoInstancesWorkAtOnce) {
  const auto work = [](Precision precision) {
    const auto ops = make_cpu_ops(precision, 2);
    for (const auto& [operation, cases] : operations()) {
      size_t i = 0;
      for (const auto& one : cases(precision)) {
        if (i++ % 7 == 3) compare_with_reference(*one, *ops);
      }
    }
  };
  std::thread other([&] { work(Precision::f32); });
  work(Precision::bf16);
  other.join();
}

TEST(CpuOps, RefusesDouble) {
  EXPECT_THAT([] { make_cpu_ops(Precision::f64, 1); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("reference")));
}

TEST(CpuOps, RefusesOtherQuantisedWeights) {
  const auto ops = make_cpu_ops(Precision::f32, 1);
  const ConstView weight(nullptr, DType::q2_k, {256, 256});
  EXPECT_THAT([&] { ops->prepare(weight); }, testing::ThrowsMessage<Error>(testing::HasSubstr("q2_k")));
}

TEST(CpuOps, HardwareNamesTheInstructionSet) {
  const std::map<int64_t, std::string> names = {{HWY_SSE4, "SSE4"},
                                                {HWY_AVX2, "AVX2"},
                                                {HWY_AVX3, "AVX-512"},
                                                {kVnni, "AVX-512 with VNNI"},
                                                {HWY_NEON, "NEON"}};
  for (const int64_t target : targets()) {
    hwy::SetSupportedTargetsForTest(target);
    EXPECT_THAT(make_cpu_ops(Precision::f32, 1)->hardware(), testing::StartsWith(names.at(target)));
    hwy::SetSupportedTargetsForTest(0);
  }
  if (cpu::tile_unit() != nullptr) {
    EXPECT_THAT(make_cpu_ops(Precision::bf16, 1)->hardware(), testing::EndsWith("AMX"));
  }
}

/// bf16 products need an instruction set that has them.
TEST(CpuOps, ActiveTypeFollowsTheProcessor) {
  hwy::SetSupportedTargetsForTest(HWY_SSE4 | HWY_NEON);
  EXPECT_EQ(make_cpu_ops(Precision::bf16, 1)->active(), DType::f32);
  hwy::SetSupportedTargetsForTest(0);
  EXPECT_EQ(make_cpu_ops(Precision::f32, 1)->active(), DType::f32);
}

}  // namespace
}  // namespace rwkvx::test
