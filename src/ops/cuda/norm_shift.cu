#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/time_mix_parts.h"
#include "ops/cuda/types.h"
#include "ops/cuda/wkv7_sequences.h"

/// Operations in one kernel that others take several for: with few rows a kernel costs what it takes to
/// start.
namespace rwkvx::cuda {
namespace {

constexpr int kMostMixes = 6;  // of a time mix; a channel mix has one
constexpr int kMostThreads = 1024;
constexpr int64_t kMostWidth = 4 * kMostThreads;  // of a row, which lies in a block's registers

struct NormShiftArguments {
  const float *x, *gain, *bias, *mix;
  float eps;
  int width;
  float* normed;  // or null
  void* y[kMostMixes];
};

__device__ __forceinline__ float4 load4_or_zero(const float* p, bool valid) {
  return valid ? load4(p) : make_float4(0, 0, 0, 0);
}
__device__ __forceinline__ float4 shifted(float4 now, float4 before, float4 share) {
  return make_float4(now.x + (before.x - now.x) * share.x, now.y + (before.y - now.y) * share.y,
                     now.z + (before.z - now.z) * share.z, now.w + (before.w - now.w) * share.w);
}

/// What all rows of a block's thread need, four channels of each.
struct Norm {
  float4 gain, bias;
  float width, eps;
};
/// Four channels of a row, normalised; the block's threads have the others. As layer_norm().
__device__ __forceinline__ float4 normalised(float4 v, bool valid, const Norm& norm, float* scratch) {
  const float mean = block_sum((v.x + v.y) + (v.z + v.w), scratch) / norm.width;
  const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
  const float squares = valid ? (a * a + b * b) + (c * c + d * d) : 0.0f;
  const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / norm.width + norm.eps);
  return make_float4(a * scale * norm.gain.x + norm.bias.x, b * scale * norm.gain.y + norm.bias.y,
                     c * scale * norm.gain.z + norm.bias.z, d * scale * norm.gain.w + norm.bias.w);
}

/// A block for each `rows_of_block` rows, a thread for each four channels. The block that has a sequence's
/// first row alone reads its `last`, and writes it: with the row itself, or where that is another block's
/// with a norm computed twice. So is that of the row before a block's first.
template <int kMixes, typename Y>
__global__ void __launch_bounds__(kMostThreads)
    norm_shift_kernel(const __grid_constant__ NormShiftArguments op,
                      const __grid_constant__ Sequences sequences, int rows_of_block) {
  __shared__ float scratch[32];
  allow_next_kernel();
  const int c = 4 * static_cast<int>(threadIdx.x);
  const bool valid = c < op.width;
  if (valid && blockIdx.x == 0) {  // the caches may have lost them since the last token
    prefetch_l2(op.gain + c);
    prefetch_l2(op.bias + c);
    for (int m = 0; m < kMixes; ++m) prefetch_l2(op.mix + m * op.width + c);
  }
  const int64_t end = sequences.offsets[sequences.count];
  const int64_t first = sequences.offsets[0] + static_cast<int64_t>(blockIdx.x) * rows_of_block;
  const int64_t stop = min(first + rows_of_block, end);
  int s = 0;
  while (first >= sequences.offsets[s + 1]) ++s;
  if (valid && first == sequences.offsets[s]) prefetch_l2(static_cast<float*>(sequences.states[s]) + c);
  wait_for_previous_kernel();

  const float* const x = op.x + c;
  float4 next = load4_or_zero(x + first * op.width, valid);
  const Norm norm{load4_or_zero(op.gain + c, valid), load4_or_zero(op.bias + c, valid),
                  static_cast<float>(op.width), op.eps};
  float4 shares[kMixes];
#pragma unroll
  for (int m = 0; m < kMixes; ++m) shares[m] = load4_or_zero(op.mix + m * op.width + c, valid);

  float4 before = make_float4(0, 0, 0, 0);
  if (first > sequences.offsets[s]) {
    before = normalised(load4_or_zero(x + (first - 1) * op.width, valid), valid, norm, scratch);
  }
  for (int64_t row = first; row < stop; ++row) {
    if (row == sequences.offsets[s + 1]) ++s;
    float* const last = static_cast<float*>(sequences.states[s]) + c;
    const int64_t last_row = sequences.offsets[s + 1] - 1;
    if (row == sequences.offsets[s]) before = load4_or_zero(last, valid);
    const float4 given = next;
    if (row + 1 < stop) next = load4_or_zero(x + (row + 1) * op.width, valid);
    const float4 now = normalised(given, valid, norm, scratch);
    if (valid) {
      const int64_t at = row * op.width + c;
#pragma unroll
      for (int m = 0; m < kMixes; ++m) {
        store4(static_cast<Y*>(op.y[m]) + at, shifted(now, before, shares[m]));
      }
      if (op.normed != nullptr) store4(op.normed + at, now);
    }
    if (row == sequences.offsets[s] && last_row >= stop) {
      const float4 kept = normalised(load4_or_zero(x + last_row * op.width, valid), valid, norm, scratch);
      if (valid) store4(last, kept);
    } else if (row == last_row && sequences.offsets[s] >= first) {
      if (valid) store4(last, now);
    }
    before = now;
  }
}

const float* real(const ConstView& view) { return view ? view.as<float>() : nullptr; }

}  // namespace

void norm_shift(Gpu& gpu, const NormShift& call) {
  const int64_t width = call.x.dim(1);
  if (width > kMostWidth || (call.y.size() != 1 && call.y.size() != kMostMixes)) {
    layer_norm(gpu, call.x, call.gain, call.bias, call.eps, call.normed);
    return token_shift(gpu, call.normed, call.mix, call.offsets, call.last, call.y);
  }
  RWKVX_ASSERT(width % 4 == 0);
  NormShiftArguments op{real(call.x),
                        real(call.gain),
                        real(call.bias),
                        real(call.mix),
                        call.eps,
                        static_cast<int>(width),
                        call.normed_needed ? call.normed.as<float>() : nullptr,
                        {}};
  for (size_t m = 0; m < call.y.size(); ++m) op.y[m] = call.y[m].data();
  const unsigned threads = 32 * blocks_for(width, 4 * 32);
  for_groups(call.offsets, call.last, [&](const Sequences& group, size_t) {
    const int64_t rows = group.offsets[group.count] - group.offsets[0];
    // Few rows: a block for each. Many: blocks of several, which also compute the norm of the row before
    // theirs.
    const int64_t rows_of_block = std::clamp<int64_t>(rows / (8 * gpu.multiprocessors()), 1, 16);
    const Grid grid{blocks_for(rows, rows_of_block), threads};
    with_real_or_bf16(call.y[0], [&](auto* to) {
      using Y = std::remove_pointer_t<decltype(to)>;
      const auto kernel = call.y.size() == 1 ? norm_shift_kernel<1, Y> : norm_shift_kernel<kMostMixes, Y>;
      launch(gpu, grid, kernel, op, group, static_cast<int>(rows_of_block));
    });
  });
}

}  // namespace rwkvx::cuda
