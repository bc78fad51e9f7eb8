#include <array>
#include <vector>

#include "ops/training.h"
#include "ops_data.h"

/// The backward operations of the cpu backend, beside the forward that they belong to. GFLOP/s count the
/// arithmetic of the method (the states or scores computed again included).
namespace rwkvx {
namespace {

/// The forward keeps states, as in training.
void wkv7(benchmark::State& state, bool backward) {
  const int64_t tokens = state.range(0), heads = state.range(1), width = heads * kHeadSize;
  const auto ops = make_cpu(state.range(2));
  const Shape all{tokens, width};
  const Buffer r = filled(DType::f32, all), w = filled(DType::f32, all, 0.9), k = filled(DType::f32, all),
               v = filled(DType::f32, all), a = filled(DType::f32, all, 0.1),
               b = filled(DType::f32, all, 0.1);
  Buffer y(DType::f32, all), s = filled(DType::f32, {heads, kHeadSize, kHeadSize});
  const std::vector<int64_t> offsets{0, tokens};
  Buffer kept(DType::f32, {wkv7_intervals(offsets), heads, kHeadSize, kHeadSize});
  void* last = s.view().data();
  const Wkv7Call call{r, w, k, v, a, b, offsets, std::span(&last, 1), y, kept};
  ops->wkv7(call);
  std::vector<Buffer> gradients;
  for (int i = 0; i < 6; ++i) gradients.emplace_back(DType::f32, all);
  for (Buffer& buffer : gradients) ops->training().zero(buffer);
  const Wkv7Gradients g{r,           gradients[0], gradients[1], gradients[2], gradients[3], gradients[4],
                        gradients[5]};
  for (auto _ : state) {
    if (backward) {
      ops->training().wkv7_backward(call, g);
    } else {
      ops->wkv7(call);
    }
  }
  // For each element of the state 9 forward, 7 of them again, and 19 backward.
  rate(state, "GFLOP/s", (backward ? 26.0 : 9.0) * static_cast<double>(tokens * width * kHeadSize));
}
void wkv7_sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "heads", "threads"})->ArgsProduct({{512}, {12}, {1, 0}});
}
BENCHMARK_CAPTURE(wkv7, forward, false)->Apply(wkv7_sizes);
BENCHMARK_CAPTURE(wkv7, backward, true)->Apply(wkv7_sizes);

}  // namespace
}  // namespace rwkvx

BENCHMARK_MAIN();
