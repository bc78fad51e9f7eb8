// World tokenization and the loading of its vocabulary.
//   RWKVX_WORLD_VOCAB=rwkv_vocab_v20230424.txt RWKVX_BOOK=book.txt build/release/tokenizer_benchmark
#include <benchmark/benchmark.h>

#include <cstdlib>

#include "base/error.h"
#include "base/file.h"
#include "tokenizer/gguf_vocabulary.h"
#include "tokenizer/tokenizer.h"

namespace {

using namespace rwkvx;

Path path_from(const char* variable) {
  const char* const path = std::getenv(variable);
  if (path == nullptr) fail("set {} to a file to run this benchmark", variable);
  return path;
}

/// Runs `body`; an Error ends the benchmark with its message.
template <typename Body>
void guarded(benchmark::State& state, Body body) {
  try {
    body();
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
}

void encode_book(benchmark::State& state) {
  guarded(state, [&] {
    const auto world = read_world_vocabulary(path_from("RWKVX_WORLD_VOCAB"));
    const std::string book = read_file(path_from("RWKVX_BOOK"));
    std::vector<TokenId> ids;
    for (auto _ : state) {
      ids.clear();
      world->encode(book, ids);
      benchmark::DoNotOptimize(ids.data());
    }
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * book.size()));
    state.counters["bytes/token"] = static_cast<double>(book.size()) / static_cast<double>(ids.size());
  });
}
BENCHMARK(encode_book)->Unit(benchmark::kMillisecond);

void decode_book(benchmark::State& state) {
  guarded(state, [&] {
    const auto world = read_world_vocabulary(path_from("RWKVX_WORLD_VOCAB"));
    const std::string book = read_file(path_from("RWKVX_BOOK"));
    const std::vector<TokenId> ids = world->encode(book);
    for (auto _ : state) benchmark::DoNotOptimize(world->decode(ids));
    state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * book.size()));
  });
}
BENCHMARK(decode_book)->Unit(benchmark::kMillisecond);

void load_vocabulary_file(benchmark::State& state) {
  guarded(state, [&] {
    const Path path = path_from("RWKVX_WORLD_VOCAB");
    for (auto _ : state) benchmark::DoNotOptimize(read_world_vocabulary(path));
  });
}
BENCHMARK(load_vocabulary_file)->Unit(benchmark::kMillisecond);

void load_gguf_vocabulary(benchmark::State& state) {
  guarded(state, [&] {
    const auto world = read_world_vocabulary(path_from("RWKVX_WORLD_VOCAB"));
    const GgufVocabulary vocabulary = to_gguf_vocabulary(*world, 65536);
    for (auto _ : state) benchmark::DoNotOptimize(from_gguf_vocabulary(vocabulary));
  });
}
BENCHMARK(load_gguf_vocabulary)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
