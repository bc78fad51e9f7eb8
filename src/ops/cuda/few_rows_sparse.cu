#include <algorithm>

#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/types.h"

/// Products of few rows with a matrix [in, out] whose input is mostly zero: rows of zeros are not read.
/// Blocks share the inputs among them; sums over blocks are made by a second kernel, in order.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostInputs = 512;  // of a block
constexpr int kColumns = 8;       // outputs of a thread
constexpr int kAhead = 4;         // rows of weights that are loaded together

template <typename W>
__device__ __forceinline__ void load_weights(const W* p, float (&w)[kColumns]);
template <>
__device__ __forceinline__ void load_weights<float>(const float* p, float (&w)[kColumns]) {
  load8(p, w);
}
template <>
__device__ __forceinline__ void load_weights<Bf16>(const Bf16* p, float (&w)[kColumns]) {
  unpack8(load_once(reinterpret_cast<const uint4*>(p)), Bf16(), w);
}
template <>
__device__ __forceinline__ void load_weights<Fp16>(const Fp16* p, float (&w)[kColumns]) {
  unpack8(load_once(reinterpret_cast<const uint4*>(p)), Fp16(), w);
}

/// Block x: inputs x · inputs … of row blockIdx.y; sums [R, blocks, out].
template <typename W, typename X>
__global__ void __launch_bounds__(kThreads)
    sums_kernel(const W* w, const X* x, int in, int out, int inputs, float* sums) {
  __shared__ float values[kMostInputs];
  __shared__ int places[kMostInputs];
  __shared__ int counts[kThreads / 32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int first = static_cast<int>(blockIdx.x) * inputs, end = min(first + inputs, in);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // Which inputs are not zero, in order.
  int found = 0;
  for (int base = first; base < end; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const float value = i < end ? to_float(x[static_cast<int64_t>(blockIdx.y) * in + i]) : 0.0f;
    const unsigned taken = __ballot_sync(kAllLanes, value != 0.0f);
    if (lane == 0) counts[warp] = __popc(taken);
    __syncthreads();
    int before = found, all = found;
    for (int other = 0; other < kThreads / 32; ++other) {
      if (other < warp) before += counts[other];
      all += counts[other];
    }
    if (value != 0.0f) {
      const int at = before + __popc(taken & ((1u << lane) - 1));
      values[at] = value;
      places[at] = i;
    }
    found = all;
    __syncthreads();
  }
  float* to = sums + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * out;
  for (int column = static_cast<int>(threadIdx.x) * kColumns; column < out; column += kThreads * kColumns) {
    float sum[kColumns] = {};
    int at = 0;
    for (; at + kAhead <= found; at += kAhead) {
      float weights[kAhead][kColumns];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        load_weights(w + static_cast<int64_t>(places[at + a]) * out + column, weights[a]);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) sum[c] += values[at + a] * weights[a][c];
      }
    }
    for (; at < found; ++at) {
      float weights[kColumns];
      load_weights(w + static_cast<int64_t>(places[at]) * out + column, weights);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) sum[c] += values[at] * weights[c];
    }
    store4(to + column, make_float4(sum[0], sum[1], sum[2], sum[3]));
    store4(to + column + 4, make_float4(sum[4], sum[5], sum[6], sum[7]));
  }
}

/// A block has 32 outputs of one row; its warps share the sums.
__global__ void __launch_bounds__(kThreads)
    total_kernel(const float* sums, int parts, int out, Result result) {
  __shared__ float partial[kThreads / 32][32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int column = static_cast<int>(blockIdx.x) * 32 + lane;
  const float* from = sums + static_cast<int64_t>(blockIdx.y) * parts * out;
  float sum = 0.0f;
  if (column < out) {
    for (int part = warp; part < parts; part += kThreads / 32)
      sum += from[static_cast<int64_t>(part) * out + column];
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= out) return;
  float total = 0.0f;
  for (int i = 0; i < kThreads / 32; ++i) total += partial[i][lane];
  store_result(result, static_cast<int64_t>(blockIdx.y) * out + column, total);
}

/// Ends a product whose sums lie in parts: sums [R, parts, out].
void add_parts(Gpu& gpu, ConstView sums, const FewRowsCall& call) {
  const int64_t rows = sums.dim(0), out = sums.dim(2);
  launch(gpu, {dim3(blocks_for(out, 32), static_cast<unsigned>(rows)), kThreads}, total_kernel,
         sums.as<float>(), static_cast<int>(sums.dim(1)), static_cast<int>(out), result_of(call));
}

}  // namespace

void few_rows_sparse(Gpu& gpu, const FewRowsCall& call) {
  if (call.w->type == DType::bf16 && call.x.dtype() == DType::bf16) return few_rows_sparse_tensor(gpu, call);
  const Arena::Scope scope(gpu.scratch());
  const GpuMatrix& m = *call.w;
  const int64_t rows = call.x.dim(0);
  // Two blocks for each multiprocessor.
  const int64_t wanted = (m.in + 2 * gpu.multiprocessors() - 1) / (2 * gpu.multiprocessors());
  const int inputs = static_cast<int>(std::clamp<int64_t>(wanted, 8, kMostInputs));
  const auto parts = static_cast<int>(blocks_for(m.in, inputs));
  const View sums = gpu.scratch().take(DType::f32, {rows, parts, m.out});
  const auto run = [&](auto* w, auto* x) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
    using X = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    launch(gpu, {dim3(static_cast<unsigned>(parts), static_cast<unsigned>(rows)), kThreads},
           sums_kernel<W, X>, w, x, static_cast<int>(m.in), static_cast<int>(m.out), inputs,
           sums.as<float>());
  };
  with_real_or_bf16(call.x, [&](const auto* x) {
    if (m.type == DType::f32) return run(static_cast<const float*>(m.body), x);
    if (m.type == DType::bf16) return run(static_cast<const Bf16*>(m.body), x);
    run(static_cast<const Fp16*>(m.body), x);
  });
  add_parts(gpu, sums, call);
}

}  // namespace rwkvx::cuda
