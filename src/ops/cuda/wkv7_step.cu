#include <array>
#include <cstdlib>
#include <optional>
#include <type_traits>

#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/low_rank.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/time_mix_parts.h"
#include "ops/cuda/types.h"
#include "ops/cuda/wkv7_sequences.h"

/// A token of the WKV-7 recurrence and all around it in one kernel: with few rows a kernel costs what it
/// takes to start.
namespace rwkvx::cuda {
namespace {

/// A step of the recurrence and what stands around it. Of a head's state [64, 64] a thread has 4 columns of 4
/// rows: half a warp has whole rows, the block all of them.
constexpr int kStepThreads = 256;
constexpr int kLanes = 16;  // of a row

/// The pointers of a Wkv7Step. decay, rate, value_gate and g are null where their products are made here.
struct StepArguments {
  const float *r, *decay, *rate, *value_gate, *k, *v, *v_first, *g;
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *gain, *bias;
  const uint8_t* reset;  // [R] or null
  float eps;
  void* y;
  LowRank low_rank;
};

/// Of a head of a row, [64] each.
struct Projections {
  const float *decay, *rate, *value_gate, *g;
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
__device__ __forceinline__ void step_operands(const StepArguments& op, const Projections& given, int64_t row,
                                              int head, int stride, int warp, StepShared& to) {
  const int i = static_cast<int>(threadIdx.x) % 32, c = head + 2 * i;
  const int64_t at = row * stride + c;
  if (warp == 0) {
    const float2 k = load2(op.k + at), k_k = load2(op.k_k + c), k_a = load2(op.k_a + c),
                 a0 = load2(op.a0 + c), rate_in = load2(given.rate + 2 * i);
    const float2 raw = make_float2(k.x * k_k.x, k.y * k_k.y);
    const float norm = fmaxf(sqrtf(warp_sum(raw.x * raw.x + raw.y * raw.y)), 1e-12f);
    const float2 kappa = make_float2(raw.x / norm, raw.y / norm);
    const float2 rate = make_float2(sigmoid(a0.x + rate_in.x), sigmoid(a0.y + rate_in.y));
    store_pair(to.kappa, i, kappa.x, kappa.y);
    store_pair(to.b, i, kappa.x * rate.x, kappa.y * rate.y);
    store_pair(to.k, i, k.x * (1.0f + (rate.x - 1.0f) * k_a.x), k.y * (1.0f + (rate.y - 1.0f) * k_a.y));
  } else if (warp == 1) {
    const float2 w0 = load2(op.w0 + c), decay = load2(given.decay + 2 * i);
    store_pair(to.w, i, expf(-kDecay * sigmoid(w0.x + decay.x)), expf(-kDecay * sigmoid(w0.y + decay.y)));
  } else if (warp == 2) {
    float2 v = load2(op.v + at);
    if (op.v0 != nullptr) {
      const float2 first = load2(op.v_first + at), v0 = load2(op.v0 + c),
                   gate = load2(given.value_gate + 2 * i);
      v.x += (first.x - v.x) * sigmoid(v0.x + gate.x);
      v.y += (first.y - v.y) * sigmoid(v0.y + gate.y);
    }
    store_pair(to.v, i, v.x, v.y);
  }
}

/// A block for each head (x) and sequence (y), whose only row it is.
template <typename Y, bool kLowRank>
__global__ void __launch_bounds__(kStepThreads)
    step_kernel(const __grid_constant__ StepArguments op, const __grid_constant__ Sequences sequences,
                int stride) {
  __shared__ StepShared shared;
  __shared__ std::conditional_t<kLowRank, LowRankProducts::Shared, int> low_rank;
  allow_next_kernel();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kLanes, group = thread / kLanes;
  const int head = static_cast<int>(blockIdx.x) * kHead;  // its first channel
  const int64_t row = sequences.offsets[0] + blockIdx.y;
  float* const states =
      static_cast<float*>(sequences.states[blockIdx.y]) + static_cast<int64_t>(head) * kHead;
  // Into the cache that all share, which is safe while others write: 32 bytes at a time.
  for (int i = thread; i < kStateElements / 8; i += kStepThreads) prefetch_l2(states + 8 * i);
  LowRankProducts products(op.low_rank);
  if constexpr (kLowRank) {
    if (!op.low_rank.constant) wait_for_previous_kernel();
    products.load(head, low_rank);
  }
  wait_for_previous_kernel();

  float* const state = states + 4 * group * kHead + 4 * lane;
  float4 s[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = load4(state + i * kHead);
  const int c = head + 4 * lane;  // of this thread's columns, and of its outputs
  const int64_t at = row * stride + c;
  const float4 r = load4(op.r + at);
  const float kept = op.reset != nullptr && op.reset[row] != 0 ? 0.0f : 1.0f;
  const int64_t first = row * stride + head;
  Projections given;
  if constexpr (kLowRank) {
    products.load_inputs(row, low_rank);
    __syncthreads();
    products.multiply(low_rank);
    given = {low_rank.sums[0], low_rank.sums[1], low_rank.sums[2], low_rank.sums[3]};
  } else {
    given = {op.decay + first, op.rate + first, op.value_gate == nullptr ? nullptr : op.value_gate + first,
             op.g + first};
  }
  step_operands(op, given, row, head, stride, thread / 32, shared);
  const bool writes = thread < 32;  // the first warp
  float4 g, r_k, gain, bias;
  if (writes) {
    g = load4(given.g + 4 * lane);
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

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

/// The products of a call if a step can make them itself; else nothing.
std::optional<LowRank> low_rank_of(const Wkv7Step& call) {
  const Wkv7Operands& in = call.operands;
  const std::array<ConstView, LowRank::kMost> to{in.decay, in.rate, in.value_gate, call.output.g};
  if (const char* off = std::getenv("RWKVX_LOWRANK"); off && *off == '0') return {};
  LowRank all{};
  all.constant = true;
  int steps = 0;
  size_t found = 0;
  for (const LinearCall& product : call.products) {
    const GpuMatrix& m = gpu_matrix(*product.w);
    const bool fits = m.type == DType::bf16 && product.x.dtype() == DType::bf16 && !m.input_major &&
                      m.in % 8 == 0 && aligned(m.body) && aligned(product.x.data()) && !product.add &&
                      product.activation == Activation::none;
    if (!fits) return {};
    for (size_t i = 0; i < to.size(); ++i) {
      if (!to[i] || to[i].data() != product.y.data()) continue;
      const int own = static_cast<int>((m.in + 31) / 32);
      all.of[i] = {static_cast<const Bf16*>(m.body), pointer<Bf16>(product.x), static_cast<int>(m.in), own};
      steps += own;
      ++found;
    }
    all.constant = all.constant && m.constant;
  }
  const size_t wanted = in.value_gate ? 4 : 3;
  if (found != wanted || call.products.size() != wanted || steps > LowRank::kMostSteps) return {};
  return all;
}

/// Each block reads the weights of its head: worth it for so many sequences.
constexpr size_t kMostSequencesOfProducts = 2;

}  // namespace

void wkv7_step(Gpu& gpu, const Wkv7Step& call, Precision precision) {
  const Wkv7Operands& in = call.operands;
  const std::span<const int64_t> offsets = call.recurrence.offsets;
  const bool single_rows =
      offsets.back() + 1 == static_cast<int64_t>(offsets.size()) && !call.recurrence.kept;
  std::optional<LowRank> products;
  if (single_rows && call.recurrence.states.size() <= kMostSequencesOfProducts) products = low_rank_of(call);
  if (!products && !call.products.empty()) linear(gpu, call.products);
  if (!single_rows) {
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
                   call.output.y.data(),
                   products.value_or(LowRank{})};
  if (!in.reset.empty()) op.reset = gpu.table(in.reset);
  for_groups(offsets, call.recurrence.states, [&](const Sequences& group, size_t) {
    const dim3 blocks(static_cast<unsigned>(width / kHead), static_cast<unsigned>(group.count));
    with_real_or_bf16(call.output.y, [&](auto* to) {
      using Y = std::remove_pointer_t<decltype(to)>;
      launch(gpu, {blocks, kStepThreads}, products ? step_kernel<Y, true> : step_kernel<Y, false>, op, group,
             width);
    });
  });
}

}  // namespace rwkvx::cuda
