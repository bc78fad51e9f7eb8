// Drawing one token from the logits of a World vocabulary.
#include <benchmark/benchmark.h>

#include "runtime/sampler.h"

namespace {

using namespace rwkvx;

void sample(benchmark::State& state, SamplerOptions options, double spread) {
  // Sums of four uniform numbers: a bell of about the width that real logits have.
  Random random(1);
  std::vector<float> logits;
  for (int i = 0; i < 65536; ++i) {
    const double x = random.uniform() + random.uniform() + random.uniform() + random.uniform() - 2;
    logits.push_back(static_cast<float>(x * spread));
  }
  Sampler sampler(options);
  for (auto _ : state) benchmark::DoNotOptimize(sampler.sample(logits));
}

BENCHMARK_CAPTURE(sample, greedy, SamplerOptions{.temperature = 0}, 10)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(sample, top_p, SamplerOptions{.top_p = 0.85f}, 10)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(sample, top_p_flat, SamplerOptions{.top_p = 0.85f}, 1)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(sample, top_k, SamplerOptions{.top_p = 1, .top_k = 100}, 10)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(sample, everything, SamplerOptions{.top_p = 1}, 10)->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
