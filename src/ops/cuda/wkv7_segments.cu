#include "ops/cuda/kernels.h"
#include "ops/cuda/wkv7_chunks.h"

namespace rwkvx::cuda {
namespace {

constexpr int kRows = 16;  // of the state, a block's
constexpr int kThreads = kRows * kHead / 4;
constexpr int kRowStride = kHead + 4;

/// Blocks: 16 rows of a head's state (x), sequences (y).
__global__ void __launch_bounds__(kThreads)
    scan_kernel(Wkv7Sequences sequences, int heads, int64_t segment_rows, int64_t most_segments,
                bool backwards, float* maps) {
  __shared__ float p[2][kHead][kRowStride];
  __shared__ float s[2][kRows][kRowStride];
  allow_next_kernel();
  wait_for_previous_kernel();
  constexpr int kBlocks = kHead / kRows;
  const int head = static_cast<int>(blockIdx.x) / kBlocks;
  const int row = static_cast<int>(threadIdx.x) / (kHead / 4),
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  const int element = (static_cast<int>(blockIdx.x) % kBlocks * kRows + row) * kHead + column;
  const Wkv7Sequence& sequence = sequences.all[blockIdx.y];
  const int64_t segments = (sequence.rows + segment_rows - 1) / segment_rows;
  const auto map = [&](int64_t step) {
    const int64_t segment = backwards ? segments - 1 - step : step;
    return maps + ((blockIdx.y * most_segments + segment) * heads + head) * 2 * kStateElements;
  };
  const auto fetch = [&](int64_t step) {
    if (step < segments - 1) {
#pragma unroll
      for (int i = 0; i < kStateElements / 4 / kThreads; ++i) {
        const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
        copy_async_16(&p[step % 2][piece / (kHead / 4)][piece % (kHead / 4) * 4], map(step) + 4 * piece);
      }
    }
    copy_async_commit();
  };
  fetch(0);
  float4 x = make_float4(0, 0, 0, 0);
  if (sequence.state != nullptr) {
    x = load4(sequence.state + static_cast<int64_t>(head) * kStateElements + element);
  }
  for (int64_t step = 0; step < segments; ++step) {
    float* const q = map(step) + kStateElements + element;
    float4 sum = load4(q);
    store4(q, x);
    if (step == segments - 1) break;  // nothing follows: the last has no P and Q
    store4(&s[step % 2][row][column], x);
    copy_async_wait<0>();
    __syncthreads();
    fetch(step + 1);
    const auto& from = p[step % 2];
#pragma unroll 4
    for (int k = 0; k < kHead; k += 4) {
      const float4 of_row = load4(&s[step % 2][row][k]);
      const float xs[4] = {of_row.x, of_row.y, of_row.z, of_row.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 other = load4(&from[k + i][column]);
        sum.x = fmaf(xs[i], other.x, sum.x);
        sum.y = fmaf(xs[i], other.y, sum.y);
        sum.z = fmaf(xs[i], other.z, sum.z);
        sum.w = fmaf(xs[i], other.w, sum.w);
      }
    }
    x = sum;
  }
}

}  // namespace

Wkv7Segments wkv7_segments(const Gpu& gpu, const Wkv7Sequences& sequences, int heads) {
  constexpr int64_t kFewestRows = 256;  // for which finding P and Q first pays
  constexpr int64_t kBlocksOfProcessor =
      16;                         // several rounds of blocks, so that none has little to do at the end
  constexpr int64_t kUncut = 10;  // a sequence this many times a block's share is not cut
  int64_t longest = 0, total = 0;
  for (int i = 0; i < sequences.count; ++i) {
    longest = std::max(longest, sequences.all[i].rows);
    total += sequences.all[i].rows;
  }
  const auto whole = [](int64_t rows) { return (rows + kWkv7Rows - 1) / kWkv7Rows * kWkv7Rows; };
  const int64_t share = total * heads / (kBlocksOfProcessor * gpu.multiprocessors());
  if (longest < 2 * kFewestRows || longest <= kUncut * share) return {whole(longest), 1};
  const int64_t rows = whole(std::max(kFewestRows, share));
  return {rows, (longest + rows - 1) / rows};
}

void wkv7_scan_segments(Gpu& gpu, const Wkv7Sequences& sequences, int heads, Wkv7Segments segments,
                        bool backwards, float* maps) {
  const dim3 blocks(static_cast<unsigned>(heads * (kHead / kRows)), static_cast<unsigned>(sequences.count));
  launch(gpu, {blocks, kThreads}, scan_kernel, sequences, heads, segments.rows, segments.most, backwards,
         maps);
}

}  // namespace rwkvx::cuda
