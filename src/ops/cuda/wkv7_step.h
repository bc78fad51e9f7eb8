#pragma once

#include "ops/cuda/head_step.h"
#include "ops/cuda/time_mix_parts.h"
#include "ops/cuda/wkv7_sequences.h"

/// A step of the WKV-7 recurrence of one head and what stands around it: wkv7_operands(), wkv7() and
/// wkv7_output() for one row. Of the state [64, 64] a thread has 4 columns of 4 rows: half a warp has whole
/// rows, 256 threads all of them.
namespace rwkvx::cuda {

inline constexpr int kStepThreads = 256;
inline constexpr int kStepLanes = 16;  // of a row

/// Another head's: so many operands, and parameters, behind this one's; not its states.
__device__ __forceinline__ HeadStep head_behind(HeadStep to, int64_t operands, int64_t parameters) {
  to.r += operands, to.decay += operands, to.rate += operands, to.g += operands;
  to.k += operands, to.v += operands, to.v_first += operands;
  to.w0 += parameters, to.a0 += parameters, to.k_k += parameters, to.k_a += parameters;
  to.r_k += parameters, to.gain += parameters, to.bias += parameters;
  if (to.value_gate != nullptr) to.value_gate += operands, to.v0 += parameters;
  return to;
}

/// What a head's threads tell each other, [64] each.
struct StepShared {
  float4 w[kStepLanes], kappa[kStepLanes], b[kStepLanes], k[kStepLanes], v[kStepLanes], y[kStepLanes];
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
  for (int lanes = kStepLanes / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
  return x;
}

/// As operands_kernel of time_mix.cu: three warps share the work.
__device__ __forceinline__ void step_operands(const HeadStep& op, int thread, StepShared& to) {
  const int i = thread % 32, warp = thread / 32, c = 2 * i;
  if (warp == 0) {
    const float2 k = load2(op.k + c), k_k = load2(op.k_k + c), k_a = load2(op.k_a + c),
                 a0 = load2(op.a0 + c), rate_in = load2(op.rate + c);
    const float2 raw = make_float2(k.x * k_k.x, k.y * k_k.y);
    const float norm = fmaxf(sqrtf(warp_sum(raw.x * raw.x + raw.y * raw.y)), 1e-12f);
    const float2 kappa = make_float2(raw.x / norm, raw.y / norm);
    const float2 rate = make_float2(sigmoid(a0.x + rate_in.x), sigmoid(a0.y + rate_in.y));
    store_pair(to.kappa, i, kappa.x, kappa.y);
    store_pair(to.b, i, kappa.x * rate.x, kappa.y * rate.y);
    store_pair(to.k, i, k.x * (1.0f + (rate.x - 1.0f) * k_a.x), k.y * (1.0f + (rate.y - 1.0f) * k_a.y));
  } else if (warp == 1) {
    const float2 w0 = load2(op.w0 + c), decay = load2(op.decay + c);
    store_pair(to.w, i, expf(-kDecay * sigmoid(w0.x + decay.x)), expf(-kDecay * sigmoid(w0.y + decay.y)));
  } else if (warp == 2) {
    float2 v = load2(op.v + c);
    if (op.value_gate != nullptr) {
      const float2 first = load2(op.v_first + c), v0 = load2(op.v0 + c), gate = load2(op.value_gate + c);
      v.x += (first.x - v.x) * sigmoid(v0.x + gate.x);
      v.y += (first.y - v.y) * sigmoid(v0.y + gate.y);
    }
    store_pair(to.v, i, v.x, v.y);
  }
}

/// Four results from channel c of the head on.
template <typename Y>
__device__ __forceinline__ void store_step(Y* to, int c, float4 v) {
  store4(to + c, v);
}

/// By threads 0 … 255, which meet at `sync`; results go to store_step(y, …).
template <typename Y, typename Sync>
__device__ __forceinline__ void step_head(const HeadStep& op, int thread, StepShared& shared, const Y& y,
                                          const Sync& sync) {
  const int lane = thread % kStepLanes, group = thread / kStepLanes;
  const int mine = 4 * group * kHead + 4 * lane;
  float4 s[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = load4(op.before + mine + i * kHead);
  const int c = 4 * lane;  // of this thread's columns, and of its outputs
  const float4 r = load4(op.r + c);
  step_operands(op, thread, shared);
  const bool writes = thread < 32;  // the first warp
  float4 g, r_k, gain, bias;
  if (writes) {
    g = load4(op.g + c);
    r_k = load4(op.r_k + c);
    gain = load4(op.gain + c);
    bias = load4(op.bias + c);
  }
  sync();

  const float4 kappa = shared.kappa[lane], b = shared.b[lane], k = shared.k[lane], values = shared.v[group];
  float4 w = shared.w[lane];
  w = make_float4(op.kept * w.x, op.kept * w.y, op.kept * w.z, op.kept * w.w);
  const float v[4] = {values.x, values.y, values.z, values.w};
  float parts[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float u = -op.kept * half_warp_sum(dot4(s[i], kappa));  // a = −κ
    s[i].x = fmaf(u, b.x, fmaf(s[i].x, w.x, v[i] * k.x));
    s[i].y = fmaf(u, b.y, fmaf(s[i].y, w.y, v[i] * k.y));
    s[i].z = fmaf(u, b.z, fmaf(s[i].z, w.z, v[i] * k.z));
    s[i].w = fmaf(u, b.w, fmaf(s[i].w, w.w, v[i] * k.w));
    parts[i] = dot4(s[i], r);
    store4(op.state + mine + i * kHead, s[i]);
  }
  const float sum = sum_of_four<kStepLanes>(parts, lane);  // of row `lane % 4` of the four
  if (lane < 4) reinterpret_cast<float*>(&shared.y[group])[lane] = sum;
  sync();
  if (!writes) return;

  // As output_kernel of time_mix.cu; both halves of the warp compute the same.
  const float4 x = shared.y[lane], own_v = shared.v[lane];
  const float bonus = half_warp_sum(dot4(make_float4(r.x * k.x, r.y * k.y, r.z * k.z, r.w * k.w), r_k));
  const float mean = half_warp_sum((x.x + x.y) + (x.z + x.w)) / kHead;
  const float4 d = make_float4(x.x - mean, x.y - mean, x.z - mean, x.w - mean);
  const float scale = 1.0f / sqrtf(half_warp_sum(dot4(d, d)) / kHead + op.eps);
  if (thread >= kStepLanes) return;
  store_step(y, c, make_float4((d.x * scale * gain.x + bias.x + bonus * own_v.x) * g.x,
                            (d.y * scale * gain.y + bias.y + bonus * own_v.y) * g.y,
                            (d.z * scale * gain.z + bias.z + bonus * own_v.z) * g.z,
                            (d.w * scale * gain.w + bias.w + bonus * own_v.w) * g.w));
}

}  // namespace rwkvx::cuda
