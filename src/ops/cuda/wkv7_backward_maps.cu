#include "ops/cuda/wkv7_backward_chunks.h"
#include "ops/cuda/wkv7_backward_parts.h"

namespace rwkvx::cuda {
namespace {

/// Four warps have the rows of the gradient from a zero one behind the segment (Q), four those from the
/// identity (the P of G = G′ P + Q), to which dy does not count.
constexpr int kThreads = 256;

struct Shared {
  GradientOperands x;
  float w[kChunk][kHead];
  Scores ab, rb;  // the decays' sums first
  float to_middle[kHead],
      from_middle[kHead];  // decay from the start to the chunk's middle, from there to its end
};

__device__ __forceinline__ void scale_operands(Shared& c, const Decays& d) {
  const int part = static_cast<int>(threadIdx.x) / (kHead / 4) % kScanParts,
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  const bool others = threadIdx.x >= 128;
  if (part == 0) {
    if (!others) store4(&c.to_middle[column], power(d.middle, make_float4(0, 0, 0, 0)));
    if (others) store4(&c.from_middle[column], power(d.all, d.middle));
  }
  float4 decay = power(d.before, d.middle);
#pragma unroll
  for (int i = 0; i < kPartTokens; ++i) {
    const int t = part * kPartTokens + i;
    const float4 after = plus(d.before, d.sums[i]);
    if (!others) {
      scale4(&c.x.a[row_of_token(t)][column], decay);
      decay = power(after, d.middle);
      scale4(&c.x.r[t][column], decay);
    } else {
      scale4(&c.x.b[t][column], power(d.middle, after));
    }
  }
}

/// Blocks: heads (x), segments (y), sequences (z).
__global__ void __launch_bounds__(kThreads, 2)
    maps_kernel(Wkv7Inputs in, const float* dy, Wkv7Sequences sequences, int stride, int segment_rows,
                float* maps) {
  Shared& c = *dynamic_shared<Shared>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const Wkv7Sequence& sequence = sequences.all[blockIdx.z];
  const int rows = static_cast<int>(sequence.rows), first = static_cast<int>(blockIdx.y) * segment_rows;
  const int end = min(rows, first + segment_rows);
  if (first >= rows || first == 0) return;
  const int head = static_cast<int>(blockIdx.x), heads = stride / kHead;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int row = lane / 4, t = lane % 4, first_row = warp % 4 * 16;
  const bool outputs = warp < 4;
  const int64_t at = sequence.begin * stride + head * kHead;
  float* const map = maps + ((static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * heads + head) * 2 *
                                kStateElements;

  const auto tokens_from = [&](int from) { return min(kChunk, end - from); };
  const auto fetch_early = [&](int from) {  // what the last products of the chunk after do not need
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    const int tokens = tokens_from(from);
    fetch_rows<kThreads, false>(c.w, in.w + offset, stride, tokens);
    fetch_rows<kThreads, false>(c.x.b, in.b + offset, stride, tokens);
    copy_async_commit();
  };
  const auto fetch_late = [&](int from) {
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    const int tokens = tokens_from(from);
    fetch_rows<kThreads, true>(c.x.a, in.a + offset, stride, tokens);
    fetch_rows<kThreads, false>(c.x.r, in.r + offset, stride, tokens);
    fetch_rows<kThreads, false>(c.x.dy, dy + offset, stride, tokens);
    copy_async_commit();
  };
  const int last = first + (end - first - 1) / kChunk * kChunk;
  fetch_early(last);
  fetch_late(last);
  StateRows g;
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      g[n][i] = !outputs && first_row + row + 8 * (i / 2) == 8 * n + 2 * t + i % 2 ? 1.0f : 0.0f;
    }
  }
  for (int from = last; from >= first; from -= kChunk) {
    copy_async_wait<0>();
    __syncthreads();
    Decays d;
    if (!sum_decays<kThreads>(c.w, tokens_from(from), &c.ab[0][0], d)) relieve(d);
    scale_operands(c, d);
    __syncthreads();
    {
      const ScoreOrder order{warp < 4, false, warp < 4, warp >= 4};
      const Rows& tokens = warp < 4 ? c.x.a : c.x.r;
      Scores& scores = warp < 4 ? c.ab : c.rb;
      if (warp % 4 < 2) {
        score_tiles<2>(tokens, c.x.b, warp % 4, 0, order, scores, row, t);
      } else {
        score_tiles<1>(tokens, c.x.b, 1, warp % 4, order, scores, row, t);
      }
    }
    TokenColumns u;
    scale_columns(g, c.from_middle, t);
    begin_gradient(g, c.x, lane, u);
    __syncthreads();
    if (warp == 0) invert_blocks(c.ab, lane);
    __syncthreads();
    const bool more = from > first;
    if (more) {
      fetch_early(from - kChunk);
      const float* const later[] = {in.a, in.r, dy};
      const int which = static_cast<int>(threadIdx.x) / 64;
      if (which < 3) {
        prefetch_rows((which == 0   ? later[0]
                       : which == 1 ? later[1]
                                    : later[2]) +
                          at + static_cast<int64_t>(from - kChunk) * stride,
                      stride, kChunk, static_cast<int>(threadIdx.x) % 64);
      }
    }
    uint32_t y[kTokenTiles][4], z[kTokenTiles][4];
    end_gradient<false>(g, c.x, c.ab, c.rb, outputs, first_row, lane, u, y, z);
    scale_columns(g, c.to_middle, t);
    __syncthreads();
    if (more) fetch_late(from - kChunk);
  }
  store_rows(g, map + (outputs ? kStateElements : 0) + (first_row + row) * kHead + 2 * t);
}

}  // namespace

void wkv7_backward_maps(Gpu& gpu, const Wkv7Call& call, const Wkv7Gradients& gradients,
                        const Wkv7Sequences& sequences, Wkv7Segments segments, float* maps) {
  const int stride = static_cast<int>(call.r.dim(1)), heads = stride / kHead;
  const dim3 blocks(static_cast<unsigned>(heads), static_cast<unsigned>(segments.most),
                    static_cast<unsigned>(sequences.count));
  launch(gpu, {blocks, kThreads, sizeof(Shared)}, maps_kernel, inputs_of(call), gradients.dy.as<float>(),
         sequences, stride, static_cast<int>(segments.rows), maps);
}

}  // namespace rwkvx::cuda
