#include "evaluation/machine_speed.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
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

/// Asks for memory ahead, as the kernels do: a processor's own prefetching stays behind that.
uint64_t sum_of(const uint64_t* from, size_t count) {
  constexpr size_t kLine = 8, kAhead = 512;  // of 64 bytes, of 4 KB
  uint64_t sum = 0;
  size_t i = 0;
  for (; i + kLine <= count; i += kLine) {
    __builtin_prefetch(from + std::min(i + kAhead, count - 1));
    for (size_t k = 0; k < kLine; ++k) sum += from[i + k];
  }
  return std::accumulate(from + i, from + count, sum);
}

double read_speed(int threads) {
  const std::vector<uint64_t> memory(size_t{32} << 20, 1);
  const size_t part = memory.size() / static_cast<size_t>(threads);
  std::atomic<uint64_t> sum{0};  // keeps the reading from being left out
  const double seconds = quickest([&] {
    std::vector<std::thread> readers;
    for (int i = 0; i < threads; ++i) {
      readers.emplace_back([&, i] { sum += sum_of(memory.data() + part * static_cast<size_t>(i), part); });
    }
    for (std::thread& reader : readers) reader.join();
  });
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
