// Speed of prefill and decode with a loaded model, on request: a driver (compare_llama_cpp) writes one
// command a line,
//   prefill N      N random tokens from an empty state, logits of the last
//   decode N       N more tokens one by one, with logits for each
// and each is answered with one line, tokens per second. Ends with the input.
#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <random>
#include <string>

#include "base/error.h"
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

void run(const ModelOptions& options) {
  Session session(load_model(options));
  const int64_t vocab = session.model().config().vocab;
  std::mt19937 random(1);
  std::string command;
  int64_t count = 0;
  while (std::cin >> command >> count) {
    if ((command != "prefill" && command != "decode") || count < 1) {
      fail("{} {}: the commands are prefill N and decode N", printable(command), count);
    }
    if (command == "prefill") session.reset();
    const std::vector<int32_t> tokens = random_tokens(count, vocab, random);
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
