// Speed of prefill and decode with a loaded model, on request: a driver (compare_llama_cpp) writes one
// command a line,
//   prefill N      N random tokens from an empty state, logits of the last
//   decode N       N more tokens one by one, with logits for each
//   regions N      the same, for token_regions
// and each is answered with one line: tokens per second, or how many blocks the model has and for each
// parallel region of a token the time since the one before, its own (medians in µs) and its tasks, as
// GAP:TIME:TASKS. Ends with the input.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "ops/cpu/thread_pool.h"
#include "runtime/model_loader.h"
#include "runtime/session.h"

namespace rwkvx {
namespace {

std::vector<int32_t> random_tokens(int64_t count, int64_t vocab, std::mt19937& random) {
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(vocab - 1));
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(any(random));
  return tokens;
}

double median(std::vector<double> of) {
  std::nth_element(of.begin(), of.begin() + static_cast<std::ptrdiff_t>(of.size() / 2), of.end());
  return of[of.size() / 2];
}

/// Decodes `tokens` and prints what their parallel regions took. The last gap, without a region, is what one
/// thread does behind them.
void print_regions(Session& session, const std::vector<int32_t>& tokens) {
  using Clock = std::chrono::steady_clock;
  const auto microseconds = [](Clock::duration d) {
    return std::chrono::duration<double, std::micro>(d).count();
  };
  std::vector<std::vector<double>> gaps, times;  // of each region, those of all tokens
  std::vector<int64_t> tasks;
  for (const int32_t token : tokens) {
    std::vector<cpu::ThreadPool::Region> regions;
    regions.reserve(4096);
    cpu::ThreadPool::regions = &regions;
    Clock::time_point last = Clock::now();
    session.append(token);
    session.logits();
    cpu::ThreadPool::regions = nullptr;
    const Clock::time_point end = Clock::now();
    gaps.resize(regions.size() + 1);
    times.resize(regions.size());
    if (!tasks.empty() && tasks.size() != regions.size()) {
      fail("a token had {} parallel regions, another {}", tasks.size(), regions.size());
    }
    tasks.resize(regions.size());
    for (size_t i = 0; i < regions.size(); ++i) {
      gaps[i].push_back(microseconds(regions[i].opened - last));
      times[i].push_back(microseconds(regions[i].closed - regions[i].opened));
      tasks[i] = regions[i].tasks;
      last = regions[i].closed;
    }
    gaps.back().push_back(microseconds(end - last));
  }
  const ModelConfig& config = session.model().config();
  fmt::print("{} ", config.layers + config.sparse_blocks);
  for (size_t i = 0; i < times.size(); ++i) {
    fmt::print("{:.2f}:{:.2f}:{} ", median(gaps[i]), median(times[i]), tasks[i]);
  }
  fmt::print("{:.2f}:0:0\n", median(gaps.back()));
}

void run(const ModelOptions& options) {
  Session session(load_model(options));
  const int64_t vocab = session.model().config().vocab;
  std::mt19937 random(1);
  std::string command;
  int64_t count = 0;
  while (std::cin >> command >> count) {
    if ((command != "prefill" && command != "decode" && command != "regions") || count < 1) {
      fail("{} {}: the commands are prefill N, decode N and regions N", printable(command), count);
    }
    if (command == "prefill") session.reset();
    const std::vector<int32_t> tokens = random_tokens(count, vocab, random);
    if (command == "regions") {
      print_regions(session, tokens);
      std::fflush(stdout);
      continue;
    }
    const auto start = std::chrono::steady_clock::now();
    if (command == "prefill") {
      session.append(tokens);
      session.logits();
    } else {
      for (const int32_t token : tokens) {
        session.append(token);
        session.logits();
      }
    }
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    fmt::print("{:.3f}\n", static_cast<double>(count) / took.count());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace rwkvx

int main(int argc, char** argv) {
  if (argc != 4 && argc != 5) {
    fmt::print(stderr, "usage: model_speed MODEL f32|bf16 THREADS [f32|bf16|int8: keys and values]\n");
    return 2;
  }
  try {
    rwkvx::ModelOptions options;
    options.path = argv[1];
    options.precision = std::string(argv[2]) == "f32" ? rwkvx::Precision::f32 : rwkvx::Precision::bf16;
    options.threads = std::stoi(argv[3]);
    if (argc == 5) {
      const std::string keys = argv[4];
      options.kv.dtype = rwkvx::dtype_named(keys == "int8" ? "i8" : keys);
      if (!options.kv.dtype) rwkvx::fail("{}: keys and values are f32, bf16 or int8", keys);
    }
    rwkvx::run(options);
  } catch (const std::exception& e) {
    fmt::print(stderr, "model_speed: {}\n", e.what());
    return 1;
  }
}
