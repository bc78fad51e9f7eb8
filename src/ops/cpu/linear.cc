#include "ops/cpu/linear.h"

#include "base/assert.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_quantised.h"

namespace rwkvx::cpu {
namespace {

int64_t padded(const LinearCall& call) { return (call.w->in() + kPadding - 1) / kPadding * kPadding; }
int64_t blocks(const LinearCall& call) { return (call.w->out() + kOutBlock - 1) / kOutBlock; }

}  // namespace

Matrix Linear::prepare(ConstView weight) {
  if (!bytes_ || !is_quantised(weight.dtype())) return {weight, nullptr};
  return {weight, std::make_shared<PackedBlocks>(pack_blocks(weight, pool_))};
}

/// Measured: up to here the weights are better read by our own kernels than by oneDNN, which first copies
/// them into its own order (and first converts those that are not of x's type).
bool Linear::few(const LinearCall& call) const {
  if (by_bytes(call)) return call.x.dim(0) <= 128;
  return call.x.dim(0) <= (call.w->weight.dtype() == DType::f32 ? 8 : 32);
}

bool Linear::by_bytes(const LinearCall& call) const { return call.w->prepared != nullptr; }

bool Linear::by_bf16_dot(const LinearCall& call) const {
  return bf16_dot_ && call.x.dtype() == DType::bf16 && call.w->weight.dtype() == DType::bf16;
}

int64_t Linear::spread_elements(const LinearCall& call) const {
  if (by_bytes(call)) {
    const auto floats = static_cast<int64_t>(sizeof(InputBlock) / sizeof(float));
    return (call.x.elements() / 32 * floats + kPadding - 1) / kPadding * kPadding;
  }
  return by_bf16_dot(call) ? 0 : call.x.dim(0) * padded(call);
}

void Linear::run(std::span<const LinearCall> calls) {
  for (const LinearCall& call : calls) {
    RWKVX_ASSERT(call.x.dim(1) == call.w->in() && call.y.dim(1) == call.w->out());
    RWKVX_ASSERT(call.x.dim(0) == call.y.dim(0));
  }
  run_few(calls);
  many_.clear();
  for (const LinearCall& call : calls) {
    if (!few(call)) many_.push_back(&call);
  }
  many_rows_.run(many_);
}

/// The products of few rows among the calls, in one parallel region.
void Linear::run_few(std::span<const LinearCall> calls) {
  int64_t elements = 0, tasks = 0;
  uint64_t weight_bytes = 0;
  for (const LinearCall& call : calls) {
    if (!few(call)) continue;
    elements += spread_elements(call);
    tasks += blocks(call);
    weight_bytes += call.w->weight.bytes();
  }
  if (tasks == 0) return;
  float* inputs = inputs_.take<float>(elements);
  float* input = inputs;
  for (const LinearCall& call : calls) {
    if (!few(call) || by_bf16_dot(call)) continue;
    if (by_bytes(call)) {
      quantise_input(call, reinterpret_cast<InputBlock*>(input));
    } else {
      spread_input(call, padded(call), input);
    }
    input += spread_elements(call);
  }
  constexpr uint64_t kWorthThreads = 256 << 10;  // bytes: some 10 µs of one core
  const auto run_task = [&](int64_t task, int thread) {
    const float* x = inputs;
    for (const LinearCall& call : calls) {
      if (!few(call)) continue;
      if (task < blocks(call)) return run_block(call, x, task * kOutBlock, thread);
      task -= blocks(call);
      x += spread_elements(call);
    }
  };
  if (weight_bytes >= kWorthThreads) return pool_.run(tasks, run_task);
  for (int64_t task = 0; task < tasks; ++task) run_task(task, 0);
}

void Linear::run_block(const LinearCall& call, const float* x, int64_t first, int thread) {
  alignas(64) float sums[kFewRows * kOutBlock];
  const int64_t outs = std::min(kOutBlock, call.w->out() - first);
  if (outs < kOutBlock) std::fill(std::begin(sums), std::end(sums), 0.0f);
  ConstView weight = call.w->weight;
  int64_t first_in_weight = first;
  if (is_quantised(weight.dtype()) && !by_bytes(call)) {
    const ConstView block = weight.rows(first, outs);
    float* values = blocks_[static_cast<size_t>(thread)].take<float>(kOutBlock * call.w->in());
    convert(block.data(), block.dtype(), values, DType::f32, block.elements());
    weight = ConstView(values, DType::f32, block.shape());
    first_in_weight = 0;
  }
  for (int64_t row = 0; row < call.x.dim(0); row += kFewRows) {
    const int64_t rows = std::min(kFewRows, call.x.dim(0) - row);
    if (by_bytes(call)) {
      const auto* blocks = reinterpret_cast<const InputBlock*>(x) + row * call.w->in() / 32;
      dot_few_rows_quantised(*static_cast<const PackedBlocks*>(call.w->prepared.get()), first, blocks, rows,
                             sums);
    } else if (by_bf16_dot(call)) {
      dot_few_rows_bf16(call.w->weight, first, outs, call.x.rows(row, rows).as<BFloat16>(), rows, sums);
    } else {
      dot_few_rows(weight, first_in_weight, outs, x + row * padded(call), rows, padded(call), sums);
    }
    finish_few_rows(call, row, rows, first, outs, sums);
  }
}

}  // namespace rwkvx::cpu
