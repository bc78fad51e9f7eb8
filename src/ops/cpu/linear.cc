#include "ops/cpu/linear.h"

#include "base/assert.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/threads.h"

namespace rwkvx::cpu {
namespace {

bool few(const LinearCall& call) { return call.x.dim(0) <= kFewRows; }
int64_t padded(const LinearCall& call) { return (call.w->in() + kPadding - 1) / kPadding * kPadding; }
int64_t blocks(const LinearCall& call) { return (call.w->out() + kOutBlock - 1) / kOutBlock; }

}  // namespace

void Linear::run(std::span<const LinearCall> calls) {
  for (const LinearCall& call : calls) {
    RWKVX_ASSERT(call.x.dim(1) == call.w->in() && call.y.dim(1) == call.w->out());
    RWKVX_ASSERT(call.x.dim(0) == call.y.dim(0));
  }
  run_few(calls);
  for (const LinearCall& call : calls) {
    if (!few(call)) many_rows_.run(call);
  }
}

/// The products of few rows among the calls, in one parallel region.
void Linear::run_few(std::span<const LinearCall> calls) {
  int64_t elements = 0, tasks = 0;
  uint64_t weight_bytes = 0;
  for (const LinearCall& call : calls) {
    if (!few(call)) continue;
    elements += call.x.dim(0) * padded(call);
    tasks += blocks(call);
    weight_bytes += call.w->weight.bytes();
  }
  if (tasks == 0) return;
  float* inputs = inputs_.take<float>(elements);
  float* input = inputs;
  for (const LinearCall& call : calls) {
    if (!few(call)) continue;
    spread_input(call, 0, call.x.dim(0), padded(call), input);
    input += call.x.dim(0) * padded(call);
  }
  constexpr uint64_t kWorthThreads = 256 << 10;  // bytes: some 10 µs of one core
  parallel_tasks(threads_, tasks, weight_bytes >= kWorthThreads, [&](int64_t task, int) {
    const float* x = inputs;
    for (const LinearCall& call : calls) {
      if (!few(call)) continue;
      if (task < blocks(call)) {
        const int64_t begin = task * kOutBlock, end = std::min(begin + kOutBlock, call.w->out());
        return linear_few_rows(call, 0, call.x.dim(0), x, padded(call), begin, end);
      }
      task -= blocks(call);
      x += call.x.dim(0) * padded(call);
    }
  });
}

}  // namespace rwkvx::cpu
