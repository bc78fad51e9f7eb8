// Keys and values in a mapped file, which a GPU cannot read: while kernels run, here nobody can.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "model/support.h"

namespace rwkvx {
namespace {

/// What of this process is mapped from files without a name.
void protect_nameless_files(int protection) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(" (deleted)") == std::string::npos) continue;
    unsigned long begin = 0, end = 0;
    ASSERT_EQ(std::sscanf(line.c_str(), "%lx-%lx", &begin, &end), 2);
    ASSERT_EQ(mprotect(reinterpret_cast<void*>(begin), end - begin, protection), 0);
  }
}

class Protected {
 public:
  Protected() {
    emulated::around_kernels = [this](bool entering) {
      protect_nameless_files(entering ? PROT_NONE : PROT_READ | PROT_WRITE);
      ++calls;
    };
  }
  ~Protected() { emulated::around_kernels = nullptr; }
  int64_t calls = 0;
};

struct Way {
  Precision precision;
  DType dtype;
  const char* select;
};

class MappedKvTest : public testing::TestWithParam<Way> {
 protected:
  /// Everything that is computed: a prompt past several chunks, short pieces, single tokens, a fork. In f32
  /// the past of a head then takes more than half of the work space.
  static std::vector<float> run_with(const char* kv) {
    const Way way = GetParam();
    KvOptions options;
    parse_kv_policy(kv, options);
    parse_selection(way.select, options);
    options.dtype = way.dtype;
    const auto model =
        test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cuda", way.precision, {}, options);
    State state = model->new_state();
    std::vector<float> all = test::run(*model, state, test::random_tokens(275, 256, 7),
                                       std::vector<size_t>{230, 40, 1, 1, 1, 1, 1});
    EXPECT_EQ(state.kv(0).chunks().far, kv == std::string("full") ? 0 : 4);
    State fork = state.fork();
    for (State* one : {&fork, &state}) {
      for (const float x :
           test::run(*model, *one, test::random_tokens(130, 256, 8), std::vector<size_t>{60, 60, 9, 1})) {
        all.push_back(x);
      }
    }
    for (const float x : test::contents(state)) all.push_back(x);
    return all;
  }
};

TEST_P(MappedKvTest, IsFullWithoutKernelsReadingTheFile) {
  const std::vector<float> full = run_with("full");
  const Protected guard;
  const test::Distance d = test::distance(run_with("disk"), full);
  EXPECT_GT(guard.calls, 0);
  EXPECT_LE(d.rms, GetParam().precision == Precision::f32 ? 1e-5 : 0.02);
}

INSTANTIATE_TEST_SUITE_P(
    Ways, MappedKvTest,
    testing::Values(Way{Precision::f32, DType::f32, "mean"}, Way{Precision::bf16, DType::bf16, "mean"},
                    Way{Precision::bf16, DType::i8, "max:16"}, Way{Precision::bf16, DType::bf16, "full"},
                    Way{Precision::f32, DType::i8, "full"}, Way{Precision::f32, DType::f32, "full"}));

}  // namespace
}  // namespace rwkvx
