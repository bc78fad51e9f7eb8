#include "evaluation/machine_speed.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "model/weights.h"
#include "tensor/convert.h"

namespace rwkvx {
namespace {

constexpr int kPasses = 4;

/// Seconds of the quickest pass.
template <typename Pass>
double quickest(const Pass& pass) {
  double best = 1e30;
  for (int i = 0; i < kPasses; ++i) {
    const auto start = std::chrono::steady_clock::now();
    pass();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// `kStreams` equal parts are read side by side, each fetched ahead, as kernels do.
template <size_t kStreams>
uint64_t sum_of(const uint64_t* from, size_t count) {
  constexpr size_t kLine = 8, kLines = 4, kAhead = 512;  // words of 64 bytes; words of 4 KB
  const size_t part = count / kStreams;
  uint64_t sum = 0;
  for (size_t i = 0; i + kLines * kLine <= part; i += kLines * kLine) {
    for (size_t stream = 0; stream < kStreams; ++stream) {
      const uint64_t* words = from + stream * part + i;
      for (size_t line = 0; line < kLines; ++line) __builtin_prefetch(words + line * kLine + kAhead);
      for (size_t k = 0; k < kLines * kLine; ++k) sum += words[k];
    }
  }
  return sum;
}

/// Processors differ in how many streams they read fastest.
double read_speed(int threads) {
  // Twice what the last cache holds.
  const auto count =
      static_cast<size_t>(std::clamp(2 * ::sysconf(_SC_LEVEL3_CACHE_SIZE), 256L << 20, 1024L << 20) / 8);
  Buffer memory(DType::u8, {static_cast<int64_t>(count * 8)});  // in huge pages, as packed weights are
  auto* words = static_cast<uint64_t*>(memory.view().data());
  std::fill_n(words, count, 1);
  const size_t part = count / static_cast<size_t>(threads);
  std::atomic<uint64_t> sum{0};  // keeps the reading from being left out
  double seconds = 1e30;
  for (const auto read : {&sum_of<1>, &sum_of<8>}) {
    seconds = std::min(
        seconds, quickest([&] {
          std::vector<std::jthread> readers;  // joined where one cannot be started, too
          for (int i = 0; i < threads; ++i) {
            readers.emplace_back([&, i] { sum += read(words + part * static_cast<size_t>(i), part); });
          }
        }));
  }
  return 1e-9 * static_cast<double>(part * static_cast<size_t>(threads) * sizeof(uint64_t)) / seconds;
}

/// Of memory that only the backend reads: of a copy within it, both sides.
double copy_speed(Ops& ops) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  const Buffer from(DType::u8, {kBytes}, ops.allocator());
  Buffer to(DType::u8, {kBytes}, ops.allocator());
  const double seconds = quickest([&] {
    ops.copy(from.view().data(), to.view().data(), kBytes);
    ops.synchronize();
  });
  return 2e-9 * static_cast<double>(kBytes) / seconds;
}

Buffer filled(Ops& ops, DType type, Shape shape) {
  Buffer host(DType::f32, shape), rounded(type, shape);
  std::fill_n(host.as<float>(), host.view().elements(), 0.01f);
  convert(host, rounded);
  Buffer result(type, shape, ops.allocator());
  ops.upload(rounded.view().raw(), result.view().data());
  return result;
}

double product_speed(Ops& ops) {
  constexpr int64_t kRows = 1024, kWidth = 2048;
  const Buffer x = filled(ops, ops.active(), {kRows, kWidth}),
               weight = filled(ops, ops.active(), {kWidth, kWidth});
  Buffer y(ops.real(), {kRows, kWidth}, ops.allocator());
  const Matrix w = ops.prepare(weight);
  const auto multiply = [&] {
    ops.linear({.x = x, .w = &w, .y = y});
    ops.synchronize();
  };
  multiply();
  return 2e-9 * static_cast<double>(kRows * kWidth * kWidth) / quickest(multiply);
}

}  // namespace

MachineSpeed measure_machine(Ops& ops) {
  return {ops.reads_host_memory() ? read_speed(ops.threads()) : copy_speed(ops), product_speed(ops)};
}

double operations_per_token(const ModelConfig& config, double keys, bool with_head) {
  double weights = 0;
  for (const TensorSpec& spec : tensor_list(config)) {
    if (!is_matrix(spec.role) || spec.role == Role::embedding) continue;
    if (spec.role == Role::head && !with_head) continue;
    weights += static_cast<double>(spec.shape.elements());
  }
  return 2 * weights + 4 * static_cast<double>(config.channels * config.sparse_blocks) * keys;
}

}  // namespace rwkvx
