#include "ops/cuda/kernels.h"
#include "ops/cuda/wkv7_chunk_parts.h"
#include "ops/cuda/wkv7_chunks.h"

namespace rwkvx::cuda {
namespace {

/// A warp's part of the state does not depend on the others': four warps have a head's 64 rows, and to find a
/// segment's P and Q (kMaps), four more have those of P, which begin as the identity and get no values.
template <bool kMaps>
constexpr int kThreadsOf = kMaps ? 256 : 128;

template <bool kMaps>
struct Shared {
  Rows a, b, k, v;  // b, k and v ordered by row_of_token()
  float r[kMaps ? 1 : kChunk][kRowStride];
  float w[kChunk][kHead];
  Scores ab, ak;  // the decays' sums first
  float rb[kMaps ? 1 : kChunk][kScoreStride], rk[kMaps ? 1 : kChunk][kScoreStride];
  float to_middle[kHead],
      from_middle[kHead];  // decay from the start to the chunk's middle, from there to its end
};

/// What goes into products, relative to the middle of the chunk.
template <bool kMaps>
__device__ __forceinline__ void scale_operands(Shared<kMaps>& c, const Decays& d) {
  const int part = static_cast<int>(threadIdx.x) / (kHead / 4) % kScanParts,
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  const bool others = kMaps && threadIdx.x >= 128;
  if (part == 0 && !others) {
    store4(&c.to_middle[column], power(d.middle, make_float4(0, 0, 0, 0)));
    store4(&c.from_middle[column], power(d.all, d.middle));
  }
  if (!others) {
    float4 decay = power(d.before, d.middle);
#pragma unroll
    for (int i = 0; i < kPartTokens; ++i) {
      const int t = part * kPartTokens + i;
      scale4(&c.a[t][column], decay);
      if (kMaps && i == kPartTokens - 1) continue;
      decay = power(plus(d.before, d.sums[i]), d.middle);
      if constexpr (!kMaps) scale4(&c.r[t][column], decay);
    }
  }
  if (!kMaps || others) {
#pragma unroll
    for (int i = 0; i < kPartTokens; ++i) {
      const int row = row_of_token(part * kPartTokens + i);
      const float4 growth = power(d.middle, plus(d.before, d.sums[i]));
      scale4(&c.b[row][column], growth);
      scale4(&c.k[row][column], growth);
    }
  }
}

/// Scores, divided among the warps; the first goes on to invert.
template <bool kMaps>
__device__ __forceinline__ void find_scores(Shared<kMaps>& c, int warp, int g, int t) {
  if constexpr (kMaps) {
    const bool ab = warp < 4;
    const Rows& columns = ab ? c.b : c.k;
    Scores& scores = ab ? c.ab : c.ak;
    const ScoreOrder order{false, true, true, !ab};
    if (warp % 4 < 2) {
      score_tiles<2>(c.a, columns, warp % 4, 0, order, scores, g, t);
    } else {
      score_tiles<1>(c.a, columns, 1, warp % 4, order, scores, g, t);
    }
  } else {
    const bool ab = warp == 0;
    const ScoreOrder order{false, true, warp < 2, !ab};
    all_scores(warp < 2 ? c.a : c.r, warp % 2 == 0 ? c.b : c.k, order,
               ab          ? c.ab
               : warp == 1 ? c.ak
               : warp == 2 ? c.rb
                           : c.rk,
               g, t);
  }
}

/// One token after another, from operands that have not been scaled. `values`: whether the rows get any. y:
/// of the first token and this lane's row g, or null.
template <bool kMaps>
__device__ void step_through(const Shared<kMaps>& c, StateRows& s, int first_row, bool values, int tokens,
                             float* y, int stride) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const auto sum_of_row = [](float sum) {
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    return sum + __shfl_xor_sync(kAllLanes, sum, 2);
  };
  for (int token = 0; token < tokens; ++token) {
    const int row = row_of_token(token);
    float u[2] = {}, out[2] = {};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) u[i / 2] = fmaf(s[n][i], c.a[token][8 * n + 2 * t + i % 2], u[i / 2]);
    }
    u[0] = sum_of_row(u[0]);
    u[1] = sum_of_row(u[1]);
    const float v[2] = {values ? c.v[row][first_row + g] : 0.0f, values ? c.v[row][first_row + g + 8] : 0.0f};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * t + i % 2;
        s[n][i] =
            fmaf(u[i / 2], c.b[row][column], fmaf(s[n][i], c.w[token][column], v[i / 2] * c.k[row][column]));
        if constexpr (!kMaps) out[i / 2] = fmaf(s[n][i], c.r[token][column], out[i / 2]);
      }
    }
    if constexpr (!kMaps) {
      out[0] = sum_of_row(out[0]);
      out[1] = sum_of_row(out[1]);
      if (t == 0) {
        y[static_cast<int64_t>(token) * stride] = out[0];
        y[static_cast<int64_t>(token) * stride + 8] = out[1];
      }
    }
  }
}

/// Blocks: heads (x), segments (y), sequences (z). With kMaps, each finds its segment's P and Q; otherwise
/// outputs, from the state before the segment, which lies in the place of Q if there are several.
template <bool kMaps>
__global__ void __launch_bounds__(kThreadsOf<kMaps>, kMaps ? 2 : 3)
    chunks_kernel(Wkv7Inputs in, Wkv7Sequences sequences, int stride, int segment_rows, float* maps, float* y,
                  float* kept) {
  constexpr int kThreads = kThreadsOf<kMaps>;
  Shared<kMaps>& c = *dynamic_shared<Shared<kMaps>>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const Wkv7Sequence& sequence = sequences.all[blockIdx.z];
  const int rows = static_cast<int>(sequence.rows), first = static_cast<int>(blockIdx.y) * segment_rows;
  const int end = min(rows, first + segment_rows);
  const bool last = end == rows;
  if (first >= rows || (kMaps && last)) return;
  const int head = static_cast<int>(blockIdx.x), heads = stride / kHead;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, first_row = warp % 4 * 16;
  const bool values = !kMaps || warp < 4;
  const int element = (first_row + g) * kHead + 2 * t;
  const int64_t at = sequence.begin * stride + head * kHead;
  const int64_t state_at = static_cast<int64_t>(head) * kStateElements + element;
  float* const map =
      maps == nullptr ? nullptr
                      : maps + ((static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * heads + head) *
                                   2 * kStateElements;

  const auto tokens_from = [&](int from) { return min(kChunk, end - from); };
  const auto fetch_early = [&](int from) {  // what the last products of the chunk before do not need
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    const int tokens = tokens_from(from);
    fetch_rows<kThreads, false>(c.w, in.w + offset, stride, tokens);
    fetch_rows<kThreads, false>(c.a, in.a + offset, stride, tokens);
    if constexpr (!kMaps) fetch_rows<kThreads, false>(c.r, in.r + offset, stride, tokens);
    copy_async_commit();
  };
  const auto fetch_late = [&](int from) {
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    const int tokens = tokens_from(from);
    fetch_rows<kThreads, true>(c.b, in.b + offset, stride, tokens);
    fetch_rows<kThreads, true>(c.k, in.k + offset, stride, tokens);
    fetch_rows<kThreads, true>(c.v, in.v + offset, stride, tokens);
    copy_async_commit();
  };
  fetch_early(first);
  fetch_late(first);
  StateRows s;
  if constexpr (kMaps) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[n][i] = !values && first_row + g + 8 * (i / 2) == 8 * n + 2 * t + i % 2 ? 1.0f : 0.0f;
      }
    }
  } else {
    load_rows(s, map == nullptr ? sequence.state + state_at : map + kStateElements + element);
  }

  for (int from = first; from < end; from += kChunk) {
    const int tokens = tokens_from(from);
    float* const y_at = kMaps ? nullptr : y + at + static_cast<int64_t>(from) * stride + first_row + g;
    if (!kMaps && kept != nullptr) {
      const int64_t interval = sequence.first_interval + from / kChunk;
      store_rows(s, kept + interval * heads * kStateElements + state_at);
    }
    copy_async_wait<0>();
    __syncthreads();
    Decays d;
    if (!sum_decays<kThreads>(c.w, tokens, &c.ab[0][0], d)) {
      step_through<kMaps>(c, s, first_row, values, tokens, y_at, stride);
      __syncthreads();
      if (from + kChunk < end) {
        fetch_early(from + kChunk);
        fetch_late(from + kChunk);
      }
      continue;
    }
    scale_operands<kMaps>(c, d);
    __syncthreads();
    find_scores<kMaps>(c, warp, g, t);
    TokenColumns x, out;
    zero(x);
    zero(out);
    scale_columns(s, c.to_middle, t);
    add_state_times_rows(x, s, c.a, g, t);
    if constexpr (!kMaps) add_state_times_rows(out, s, c.r, g, t);
    if constexpr (kMaps) __syncthreads();
    if (warp == 0) {
      if constexpr (!kMaps) __syncwarp();
      invert_blocks(c.ab, lane);
    }
    __syncthreads();
    const bool more = from + kChunk < end;
    if (more) {
      fetch_early(from + kChunk);
      const int64_t offset = at + static_cast<int64_t>(from + kChunk) * stride;
      const int following = tokens_from(from + kChunk), thread = static_cast<int>(threadIdx.x) % 64;
      const float* const later[] = {in.b, in.k, in.v};
      if (threadIdx.x < 128) {
        prefetch_rows((threadIdx.x < 64 ? later[0] : later[1]) + offset, stride, following, thread);
        if (threadIdx.x < 64) prefetch_rows(later[2] + offset, stride, following, thread);
      }
    }
    uint32_t v[kTokenTiles][4], u[kTokenTiles][4];
    if (values) {
      transposed_rows<false>(c.v, first_row, g, t, v);
      add_times_scores<true>(x, v, c.ak, g, t);
      if constexpr (!kMaps) add_times_scores<true>(out, v, c.rk, g, t);
      add_tokens_times_rows(s, v, c.k, g, t);
    }
    solve(x, c.ab, g, t, u);
    if constexpr (!kMaps) {
      add_times_scores<true>(out, u, c.rb, g, t);
      store_tokens(out, y_at, stride, tokens, t);
    }
    add_tokens_times_rows(s, u, c.b, g, t);
    scale_columns(s, c.from_middle, t);
    __syncthreads();
    if (more) fetch_late(from + kChunk);
  }

  if constexpr (kMaps) {
    store_rows(s, map + (values ? kStateElements : 0) + element);
  } else if (last) {
    store_rows(s, sequence.state + state_at);
  }
}

}  // namespace

void wkv7_in_chunks(Gpu& gpu, const Wkv7Call& call, const Wkv7Sequences& sequences) {
  const int stride = static_cast<int>(call.r.dim(1)), heads = stride / kHead;
  const Wkv7Segments segments = wkv7_segments(gpu, sequences, heads);
  const dim3 blocks(static_cast<unsigned>(heads), static_cast<unsigned>(segments.most),
                    static_cast<unsigned>(sequences.count));
  const Arena::Scope scope(gpu.scratch());
  float* maps = nullptr;
  if (segments.most > 1) {
    maps = gpu.scratch()
               .take(DType::f32, {sequences.count * segments.most, heads, 2, kStateElements})
               .as<float>();
    launch(gpu, {blocks, kThreadsOf<true>, sizeof(Shared<true>)}, chunks_kernel<true>, inputs_of(call),
           sequences, stride, static_cast<int>(segments.rows), maps, nullptr, nullptr);
    wkv7_scan_segments(gpu, sequences, heads, segments, false, maps);
  }
  launch(gpu, {blocks, kThreadsOf<false>, sizeof(Shared<false>)}, chunks_kernel<false>, inputs_of(call),
         sequences, stride, static_cast<int>(segments.rows), maps, call.y.as<float>(),
         call.kept ? call.kept.as<float>() : nullptr);
}

}  // namespace rwkvx::cuda
