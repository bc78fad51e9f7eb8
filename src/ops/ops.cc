#include "ops/ops.h"

#include <charconv>
#include <vector>

#include "base/error.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"

namespace rwkvx {

std::string_view name(Precision precision) {
  switch (precision) {
    case Precision::f32:
      return "f32";
    case Precision::bf16:
      return "bf16";
    case Precision::f64:
      return "f64";
  }
  return "?";
}

void Ops::copy(const void* from, void* to, size_t bytes) {
  std::vector<std::byte> host(bytes);
  download(from, host);
  upload(host, to);
}

void Ops::norm_shift(const NormShift& call) {
  layer_norm(call.x, call.gain, call.bias, call.eps, call.normed);
  token_shift(call.normed, call.mix, call.offsets, call.last, call.y);
}

void Ops::norm_shift_linear(const NormShift& norm, std::span<const LinearCall> calls) {
  if (norm.mix) {
    norm_shift(norm);
  } else {
    layer_norm(norm.x, norm.gain, norm.bias, norm.eps, norm.y[0]);
  }
  linear(calls);
}

void Ops::wkv7_step(const Wkv7Step& call) {
  wkv7_operands(call.operands);
  wkv7(call.recurrence);
  wkv7_output(call.output);
}

TrainingOps& Ops::training() { fail("the {} backend cannot train; use --device cpu", name()); }

int64_t wkv7_intervals(std::span<const int64_t> offsets) {
  int64_t intervals = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    intervals += (offsets[s + 1] - offsets[s] + kWkv7Interval - 1) / kWkv7Interval;
  }
  return intervals;
}

namespace {

/// Of "cuda" and "cuda:1".
int gpu_number(std::string_view backend) {
  int number = 0;
  if (backend.size() > 5) std::from_chars(backend.data() + 5, backend.data() + backend.size(), number);
  return number;
}

}  // namespace

bool is_backend(std::string_view text) {
  if (text == "cpu" || text == "reference" || text == "cuda") return true;
  return text.starts_with("cuda:") && text.size() > 5 && text.size() < 9 &&
         text.find_first_not_of("0123456789", 5) == std::string_view::npos;
}

std::unique_ptr<Ops> make_ops(const OpsOptions& options) {
  if (options.threads < 0) fail("--threads must be 0 (all cores) or more, not {}", options.threads);
  if (options.backend == "reference") return make_reference_ops(options.precision);
  if (options.backend == "cpu") return make_cpu_ops(options.precision, options.threads);
  if (!is_backend(options.backend)) fail("unknown device '{}'; there are {}", options.backend, kDeviceHelp);
  return make_cuda_ops(options.precision, gpu_number(options.backend));
}

}  // namespace rwkvx
