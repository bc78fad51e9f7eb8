#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/time_mix_parts.h"
#include "ops/cuda/types.h"

/// What stands around the WKV-7 recurrence: one warp for each row and head, two channels for each lane.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;

/// The pointers of a Wkv7Operands.
struct Operands {
  const float *decay, *rate, *value_gate, *k, *v, *v_first;
  const float *w0, *a0, *v0, *k_k, *k_a;
  float *w, *k_out, *v_out, *a, *b;
  const uint8_t* reset;
};

__global__ void __launch_bounds__(kThreads)
    operands_kernel(const __grid_constant__ Operands op, int64_t items, int heads) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (item >= items) return;
  const int64_t row = item / heads;
  const int c = static_cast<int>(item % heads) * kHead + 2 * static_cast<int>(threadIdx.x % 32);
  const int64_t at = row * heads * kHead + c;
  const float kept = op.reset != nullptr && op.reset[row] != 0 ? 0.0f : 1.0f;
  const float2 k = load2(op.k + at), v = load2(op.v + at), k_k = load2(op.k_k + c), k_a = load2(op.k_a + c);
  const float2 raw = make_float2(k.x * k_k.x, k.y * k_k.y);
  const float norm = fmaxf(sqrtf(warp_sum(raw.x * raw.x + raw.y * raw.y)), 1e-12f);
  const float2 kappa = make_float2(raw.x / norm, raw.y / norm);
  const float2 a0 = load2(op.a0 + c), rate_in = load2(op.rate + at), w0 = load2(op.w0 + c),
               decay = load2(op.decay + at);
  const float2 rate = make_float2(sigmoid(a0.x + rate_in.x), sigmoid(a0.y + rate_in.y));
  store2(op.w + at, make_float2(kept * expf(-kDecay * sigmoid(w0.x + decay.x)),
                                kept * expf(-kDecay * sigmoid(w0.y + decay.y))));
  store2(op.a + at, make_float2(-kappa.x * kept, -kappa.y * kept));
  store2(op.b + at, make_float2(kappa.x * rate.x, kappa.y * rate.y));
  store2(op.k_out + at,
         make_float2(k.x * (1.0f + (rate.x - 1.0f) * k_a.x), k.y * (1.0f + (rate.y - 1.0f) * k_a.y)));
  float2 value = v;
  if (op.value_gate != nullptr) {
    const float2 first = load2(op.v_first + at), v0 = load2(op.v0 + c), gate = load2(op.value_gate + at);
    value.x += (first.x - v.x) * sigmoid(v0.x + gate.x);
    value.y += (first.y - v.y) * sigmoid(v0.y + gate.y);
  }
  store2(op.v_out + at, value);
}

/// The pointers of a Wkv7Output.
struct Output {
  const float *x, *r, *k, *v, *g, *r_k, *gain, *bias;
  float eps;
  void* y;
};

template <typename Y>
__global__ void __launch_bounds__(kThreads)
    output_kernel(const __grid_constant__ Output op, int64_t items, int heads) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t item = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  if (item >= items) return;
  const int64_t row = item / heads;
  const int c = static_cast<int>(item % heads) * kHead + 2 * static_cast<int>(threadIdx.x % 32);
  const int64_t at = row * heads * kHead + c;
  const float2 x = load2(op.x + at), r = load2(op.r + at), k = load2(op.k + at), v = load2(op.v + at),
               g = load2(op.g + at), r_k = load2(op.r_k + c), gain = load2(op.gain + c),
               bias = load2(op.bias + c);
  const float bonus = warp_sum(r.x * k.x * r_k.x + r.y * k.y * r_k.y);
  const float mean = warp_sum(x.x + x.y) / kHead;
  const float2 d = make_float2(x.x - mean, x.y - mean);
  const float scale = 1.0f / sqrtf(warp_sum(d.x * d.x + d.y * d.y) / kHead + op.eps);
  store2(static_cast<Y*>(op.y) + at, make_float2((d.x * scale * gain.x + bias.x + bonus * v.x) * g.x,
                                                 (d.y * scale * gain.y + bias.y + bonus * v.y) * g.y));
}

const float* real(const ConstView& view) { return view ? view.as<float>() : nullptr; }

}  // namespace

void wkv7_operands(Gpu& gpu, const Wkv7Operands& call) {
  const int64_t rows = call.k.dim(0);
  const int heads = static_cast<int>(call.k.dim(1) / kHead);
  Operands op{real(call.decay),
              real(call.rate),
              real(call.value_gate),
              real(call.k),
              real(call.v),
              real(call.v_first),
              real(call.w0),
              real(call.a0),
              real(call.v0),
              real(call.k_k),
              real(call.k_a),
              call.w.as<float>(),
              call.k_out.as<float>(),
              call.v_out.as<float>(),
              call.a.as<float>(),
              call.b.as<float>(),
              nullptr};
  if (!call.reset.empty()) op.reset = gpu.table(call.reset);
  launch(gpu, {blocks_for(rows * heads, kThreads / 32), kThreads}, operands_kernel, op, rows * heads, heads);
}

void wkv7_output(Gpu& gpu, const Wkv7Output& call) {
  const int64_t rows = call.x.dim(0);
  const int heads = static_cast<int>(call.x.dim(1) / kHead);
  const Output op{real(call.x),   real(call.r),    real(call.k),    real(call.v), real(call.g),
                  real(call.r_k), real(call.gain), real(call.bias), call.eps,     call.y.data()};
  with_real_or_bf16(call.y, [&](auto* to) {
    launch(gpu, {blocks_for(rows * heads, kThreads / 32), kThreads},
           output_kernel<std::remove_pointer_t<decltype(to)>>, op, rows * heads, heads);
  });
}

}  // namespace rwkvx::cuda
