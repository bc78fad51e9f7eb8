#include "ops/cuda/kernels.h"
#include "ops/cuda/wkv7_chunks.h"
#include "ops/cuda/wkv7_sequences.h"

/// Token by token, exact: for decoding, short sequences, and float32.
namespace rwkvx::cuda {
namespace {

constexpr int kRowsOfBlock = 16;  // of the state
constexpr int kLanesOfRow = 4;
constexpr int kThreads = kRowsOfBlock * kLanesOfRow;
constexpr int kQuads = kHead / (4 * kLanesOfRow);  // columns of a lane: 16 q + 4 lane + 0 … 3
constexpr int kTokens = 8;                         // fetched together
constexpr int kStages = 3;

/// Operands of some tokens.
struct Stage {
  float4 r[kTokens][kHead / 4], w[kTokens][kHead / 4], k[kTokens][kHead / 4], a[kTokens][kHead / 4],
      b[kTokens][kHead / 4];
  float v[kTokens][kRowsOfBlock];
};

__device__ __forceinline__ void fetch(Stage& stage, const Wkv7Inputs& in, int64_t at, int stride, int tokens,
                                      int first_row) {
  constexpr int kEach = kHead / 4, kAll = 5 * kEach + kRowsOfBlock / 4;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * kAll; i += kThreads) {
    const int t = i / kAll, piece = i % kAll, column = piece % kEach;
    const int64_t from = at + static_cast<int64_t>(t) * stride;
    switch (piece / kEach) {
      case 0:
        copy_async_16(&stage.a[t][column], in.a + from + 4 * column);
        break;
      case 1:
        copy_async_16(&stage.w[t][column], in.w + from + 4 * column);
        break;
      case 2:
        copy_async_16(&stage.b[t][column], in.b + from + 4 * column);
        break;
      case 3:
        copy_async_16(&stage.k[t][column], in.k + from + 4 * column);
        break;
      case 4:
        copy_async_16(&stage.r[t][column], in.r + from + 4 * column);
        break;
      default:
        copy_async_16(&stage.v[t][4 * column], in.v + from + first_row + 4 * column);
    }
  }
}

/// Partial sums for the four components, so that additions do not wait for each other.
__device__ __forceinline__ void add_products(float4& sum, float4 x, float4 y) {
  sum.x = fmaf(x.x, y.x, sum.x);
  sum.y = fmaf(x.y, y.y, sum.y);
  sum.z = fmaf(x.z, y.z, sum.z);
  sum.w = fmaf(x.w, y.w, sum.w);
}
__device__ __forceinline__ float sum_over_row(float4 parts) {
  float sum = (parts.x + parts.y) + (parts.z + parts.w);
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  return sum + __shfl_xor_sync(kAllLanes, sum, 2);
}

/// A block for each 16 rows of a head's state (x) and each sequence (y).
__global__ void __launch_bounds__(kThreads)
    recurrence_kernel(Wkv7Inputs in, Wkv7Sequences sequences, int stride, float* y, float* kept) {
  __shared__ Stage stages[kStages];
  allow_next_kernel();
  wait_for_previous_kernel();
  constexpr int kBlocksOfHead = kHead / kRowsOfBlock;
  const int head = static_cast<int>(blockIdx.x) / kBlocksOfHead, heads = stride / kHead;
  const int first_row = static_cast<int>(blockIdx.x) % kBlocksOfHead * kRowsOfBlock;
  const int row = static_cast<int>(threadIdx.x) / kLanesOfRow,
            lane = static_cast<int>(threadIdx.x) % kLanesOfRow;
  const Wkv7Sequence& sequence = sequences.all[blockIdx.y];
  const int64_t rows = sequence.rows, at = sequence.begin * stride + head * kHead;
  const int64_t element = (first_row + row) * kHead + 4 * lane;
  float* const state = sequence.state + static_cast<int64_t>(head) * kStateElements + element;
  const int64_t batches = (rows + kTokens - 1) / kTokens;
  const auto tokens_of = [&](int64_t batch) {
    return static_cast<int>(min(static_cast<int64_t>(kTokens), rows - batch * kTokens));
  };
  const auto fetch_batch = [&](int64_t batch) {
    if (batch < batches) {
      fetch(stages[batch % kStages], in, at + batch * kTokens * stride, stride, tokens_of(batch), first_row);
    }
    copy_async_commit();
  };
  for (int i = 0; i < kStages - 1; ++i) fetch_batch(i);
  float4 s[kQuads];
#pragma unroll
  for (int q = 0; q < kQuads; ++q) s[q] = load4(state + 16 * q);
  for (int64_t batch = 0; batch < batches; ++batch) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    fetch_batch(batch + kStages - 1);
    const Stage& stage = stages[batch % kStages];
    const int tokens = tokens_of(batch);
    if (kept != nullptr && batch % (kWkv7Rows / kTokens) == 0) {
      const int64_t interval = sequence.first_interval + batch / (kWkv7Rows / kTokens);
      float* const to = kept + (interval * heads + head) * kStateElements + element;
#pragma unroll
      for (int q = 0; q < kQuads; ++q) store4(to + 16 * q, s[q]);
    }
    for (int t = 0; t < tokens; ++t) {
      float4 sums = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) add_products(sums, s[q], stage.a[t][4 * q + lane]);
      const float u = sum_over_row(sums), v = stage.v[t][row];
      sums = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const float4 w = stage.w[t][4 * q + lane], k = stage.k[t][4 * q + lane], b = stage.b[t][4 * q + lane];
        s[q].x = fmaf(u, b.x, fmaf(s[q].x, w.x, v * k.x));
        s[q].y = fmaf(u, b.y, fmaf(s[q].y, w.y, v * k.y));
        s[q].z = fmaf(u, b.z, fmaf(s[q].z, w.z, v * k.z));
        s[q].w = fmaf(u, b.w, fmaf(s[q].w, w.w, v * k.w));
        add_products(sums, s[q], stage.r[t][4 * q + lane]);
      }
      const float sum = sum_over_row(sums);
      if (lane == 0) y[at + (batch * kTokens + t) * stride + first_row + row] = sum;
    }
  }
#pragma unroll
  for (int q = 0; q < kQuads; ++q) store4(state + 16 * q, s[q]);
}

}  // namespace

void wkv7(Gpu& gpu, const Wkv7Call& call, Precision precision) {
  const int stride = static_cast<int>(call.r.dim(1));
  const int heads = stride / kHead;
  float* const kept = call.kept ? call.kept.as<float>() : nullptr;
  const auto in_chunks = [&](int64_t rows) {
    return precision == Precision::bf16 && rows >= kWkv7FewestRows;
  };
  for_wkv7_groups(
      call.offsets, call.states, [&](int64_t rows) { return !in_chunks(rows); },
      [&](const Wkv7Sequences& sequences) {
        const dim3 blocks(static_cast<unsigned>(heads * (kHead / kRowsOfBlock)),
                          static_cast<unsigned>(sequences.count));
        launch(gpu, {blocks, kThreads}, recurrence_kernel, inputs_of(call), sequences, stride,
               call.y.as<float>(), kept);
      });
  for_wkv7_groups(call.offsets, call.states, in_chunks,
                  [&](const Wkv7Sequences& sequences) { wkv7_in_chunks(gpu, call, sequences); });
}

}  // namespace rwkvx::cuda
