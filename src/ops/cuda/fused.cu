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

/// A step of the recurrence and what stands around it. Of a head's state [64, 64] a thread has 4 columns of 4
/// rows: half a warp has whole rows, the block all of them.
constexpr int kStepThreads = 256;
constexpr int kLanes = 16;  // of a row

/// The pointers of a Wkv7Step.
struct StepArguments {
  const float *r, *decay, *rate, *value_gate, *k, *v, *v_first, *g;
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *gain, *bias;
  const uint8_t* reset;  // [R] or null
  float eps;
  void* y;
};

/// What a head's threads tell each other, [64] each.
struct StepShared {
  float4 w[kLanes], kappa[kLanes], b[kLanes], k[kLanes], v[kLanes], y[kLanes];
};

/// Channels 2 i and 2 i + 1.
__device__ __forceinline__ void store_pair(float4* to, int i, float x, float y) {
  reinterpret_cast<float2*>(to)[i] = make_float2(x, y);
}
__device__ __forceinline__ float dot4(float4 x, float4 y) {
  return fmaf(x.x, y.x, x.y * y.y) + fmaf(x.z, y.z, x.w * y.w);
}
/// Over half a warp; all of it get the result.
__device__ __forceinline__ float half_warp_sum(float x) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

/// As operands_kernel of time_mix.cu for one head, whose first channel is `head`: three warps share the work.
__device__ __forceinline__ void step_operands(const StepArguments& op, int64_t row, int head, int stride,
                                              int warp, StepShared& to) {
  const int i = static_cast<int>(threadIdx.x) % 32, c = head + 2 * i;
  const int64_t at = row * stride + c;
  if (warp == 0) {
    const float2 k = load2(op.k + at), k_k = load2(op.k_k + c), k_a = load2(op.k_a + c),
                 a0 = load2(op.a0 + c), rate_in = load2(op.rate + at);
    const float2 raw = make_float2(k.x * k_k.x, k.y * k_k.y);
    const float norm = fmaxf(sqrtf(warp_sum(raw.x * raw.x + raw.y * raw.y)), 1e-12f);
    const float2 kappa = make_float2(raw.x / norm, raw.y / norm);
    const float2 rate = make_float2(sigmoid(a0.x + rate_in.x), sigmoid(a0.y + rate_in.y));
    store_pair(to.kappa, i, kappa.x, kappa.y);
    store_pair(to.b, i, kappa.x * rate.x, kappa.y * rate.y);
    store_pair(to.k, i, k.x * (1.0f + (rate.x - 1.0f) * k_a.x), k.y * (1.0f + (rate.y - 1.0f) * k_a.y));
  } else if (warp == 1) {
    const float2 w0 = load2(op.w0 + c), decay = load2(op.decay + at);
    store_pair(to.w, i, expf(-kDecay * sigmoid(w0.x + decay.x)), expf(-kDecay * sigmoid(w0.y + decay.y)));
  } else if (warp == 2) {
    float2 v = load2(op.v + at);
    if (op.value_gate != nullptr) {
      const float2 first = load2(op.v_first + at), v0 = load2(op.v0 + c), gate = load2(op.value_gate + at);
      v.x += (first.x - v.x) * sigmoid(v0.x + gate.x);
      v.y += (first.y - v.y) * sigmoid(v0.y + gate.y);
    }
    store_pair(to.v, i, v.x, v.y);
  }
}

/// A block for each head (x) and sequence (y), whose only row it is.
template <typename Y>
__global__ void __launch_bounds__(kStepThreads)
    step_kernel(const __grid_constant__ StepArguments op, const __grid_constant__ Sequences sequences,
                int stride) {
  __shared__ StepShared shared;
  allow_next_kernel();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, group = thread / kLanes;
  const int head = static_cast<int>(blockIdx.x) * kHead;  // its first channel
  const int64_t row = sequences.offsets[0] + blockIdx.y;
  float* const states =
      static_cast<float*>(sequences.states[blockIdx.y]) + static_cast<int64_t>(head) * kHead;
  // Into the cache that all share, which is safe while others write: 32 bytes at a time.
  for (int i = thread; i < kStateElements / 8; i += kStepThreads) prefetch_l2(states + 8 * i);
  wait_for_previous_kernel();

  float* const state = states + 4 * group * kHead + 4 * lane;
  float4 s[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = load4(state + i * kHead);
  const int c = head + 4 * lane;  // of this thread's columns, and of its outputs
  const int64_t at = row * stride + c;
  const float4 r = load4(op.r + at);
  const float kept = op.reset != nullptr && op.reset[row] != 0 ? 0.0f : 1.0f;
  step_operands(op, row, head, stride, thread / 32, shared);
  const bool writes = thread < 32;  // the first warp
  float4 g, r_k, gain, bias;
  if (writes) {
    g = load4(op.g + at);
    r_k = load4(op.r_k + c);
    gain = load4(op.gain + c);
    bias = load4(op.bias + c);
  }
  __syncthreads();

  const float4 kappa = shared.kappa[lane], b = shared.b[lane], k = shared.k[lane], values = shared.v[group];
  float4 w = shared.w[lane];
  w = make_float4(kept * w.x, kept * w.y, kept * w.z, kept * w.w);
  const float v[4] = {values.x, values.y, values.z, values.w};
  float parts[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float u = -kept * half_warp_sum(dot4(s[i], kappa));  // a = −κ
    s[i].x = fmaf(u, b.x, fmaf(s[i].x, w.x, v[i] * k.x));
    s[i].y = fmaf(u, b.y, fmaf(s[i].y, w.y, v[i] * k.y));
    s[i].z = fmaf(u, b.z, fmaf(s[i].z, w.z, v[i] * k.z));
    s[i].w = fmaf(u, b.w, fmaf(s[i].w, w.w, v[i] * k.w));
    parts[i] = dot4(s[i], r);
    store4(state + i * kHead, s[i]);
  }
  const float sum = sum_of_four<kLanes>(parts, lane);  // of row `lane % 4` of the four
  if (lane < 4) reinterpret_cast<float*>(&shared.y[group])[lane] = sum;
  __syncthreads();
  if (!writes) return;

  // As output_kernel of time_mix.cu; both halves of the warp compute the same.
  const float4 x = shared.y[lane], own_v = shared.v[lane];
  const float bonus = half_warp_sum(dot4(make_float4(r.x * k.x, r.y * k.y, r.z * k.z, r.w * k.w), r_k));
  const float mean = half_warp_sum((x.x + x.y) + (x.z + x.w)) / kHead;
  const float4 d = make_float4(x.x - mean, x.y - mean, x.z - mean, x.w - mean);
  const float scale = 1.0f / sqrtf(half_warp_sum(dot4(d, d)) / kHead + op.eps);
  if (thread >= kLanes) return;
  store4(static_cast<Y*>(op.y) + at, make_float4((d.x * scale * gain.x + bias.x + bonus * own_v.x) * g.x,
                                                 (d.y * scale * gain.y + bias.y + bonus * own_v.y) * g.y,
                                                 (d.z * scale * gain.z + bias.z + bonus * own_v.z) * g.z,
                                                 (d.w * scale * gain.w + bias.w + bonus * own_v.w) * g.w));
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

void wkv7_step(Gpu& gpu, const Wkv7Step& call, Precision precision) {
  const Wkv7Operands& in = call.operands;
  const std::span<const int64_t> offsets = call.recurrence.offsets;
  if (offsets.back() + 1 != static_cast<int64_t>(offsets.size()) || call.recurrence.kept) {
    wkv7_operands(gpu, in);
    wkv7(gpu, call.recurrence, precision);
    return wkv7_output(gpu, call.output);
  }
  const int width = static_cast<int>(in.k.dim(1));
  StepArguments op{real(call.recurrence.r),
                   real(in.decay),
                   real(in.rate),
                   real(in.value_gate),
                   real(in.k),
                   real(in.v),
                   real(in.v_first),
                   real(call.output.g),
                   real(in.w0),
                   real(in.a0),
                   real(in.v0),
                   real(in.k_k),
                   real(in.k_a),
                   real(call.output.r_k),
                   real(call.output.gain),
                   real(call.output.bias),
                   nullptr,
                   call.output.eps,
                   call.output.y.data()};
  if (!in.reset.empty()) op.reset = gpu.table(in.reset);
  for_groups(offsets, call.recurrence.states, [&](const Sequences& group, size_t) {
    const dim3 blocks(static_cast<unsigned>(width / kHead), static_cast<unsigned>(group.count));
    with_real_or_bf16(call.output.y, [&](auto* to) {
      launch(gpu, {blocks, kStepThreads}, step_kernel<std::remove_pointer_t<decltype(to)>>, op, group, width);
    });
  });
}

}  // namespace rwkvx::cuda
