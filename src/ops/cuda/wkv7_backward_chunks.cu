#include "ops/cuda/kernels.h"
#include "ops/cuda/wkv7_backward_chunks.h"
#include "ops/cuda/wkv7_backward_parts.h"

namespace rwkvx::cuda {
namespace {

/// Four warps have 16 rows each of the state before the chunk and find U again; four have the gradient's
/// rows, from behind the chunk to before it, and find Z. Then all have 16 columns of two of the gradients of
/// r, a, k and b.
constexpr int kThreads = 256;

/// log₂ of what no decay but a reset's is below.
constexpr float kLeastDecay = -4.0f;

using Square = float[kHead][kRowStride];
struct Operands {
  GradientOperands x;
  Rows k, v;  // in the order of tokens
};
struct Shared {
  Operands operands[2];    // of this chunk and the next
  Rows u, z;               // [t, i]
  Square state, gradient;  // at the middle of the chunk
  Scores ab, ak, rb, rk;   // the decays' sums first; then their gradients
  float w[kChunk][kHead];  // decays, then their logarithms summed up, from the middle
  Rows after, shifted;     // terms of the gradient of log w: of tokens from t on, from t + 1 on
  Rows also_after;
  float to_middle[kHead], from_middle[kHead];
  float log_start[kHead];  // as w, of the start
  float all[2][kHead];     // the terms that all tokens get
  float parts[2][kScanParts][kHead];
};
static_assert(sizeof(Shared) <= 227 * 1024);

struct Outputs {
  float *dr, *dw, *dk, *dv, *da, *db;
};

__device__ __forceinline__ float4 minus(float4 x, float4 y) {
  return make_float4(x.x - y.x, x.y - y.y, x.z - y.z, x.w - y.w);
}

__device__ __forceinline__ void scale_operands(Shared& c, Operands& o, const Decays& d) {
  const int part = static_cast<int>(threadIdx.x) / (kHead / 4) % kScanParts,
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  const bool others = threadIdx.x >= 128;
  const float4 one = make_float4(1, 1, 1, 1), none = make_float4(0, 0, 0, 0);
  if (part == 0) {
    if (!others) {
      store4(&c.to_middle[column], power(d.middle, none));
      store4(&c.log_start[column], minus(none, d.middle));
    } else {
      store4(&c.from_middle[column], power(d.all, d.middle));
    }
  }
  float4 decay = power(d.before, d.middle);
#pragma unroll
  for (int i = 0; i < kPartTokens; ++i) {
    const int t = part * kPartTokens + i;
    const float4 after = plus(d.before, d.sums[i]);
    if (!others) {
      scale4(&o.x.a[row_of_token(t)][column], decay);
      decay = power(after, d.middle);
      scale4(&o.x.r[t][column], decay);
      scale4(&o.x.dy[t][column], one);
      store4(&c.w[t][column], minus(after, d.middle));
    } else {
      const float4 growth = power(d.middle, after);
      scale4(&o.x.b[t][column], growth);
      scale4(&o.k[t][column], growth);
      scale4(&o.v[t][column], one);
    }
  }
}

/// rows · columnsᵀ in the lower triangle; half of it.
__device__ __forceinline__ void half_of_scores(const Rows& rows, const Rows& columns, bool second,
                                               ScoreOrder order, Scores& scores, int g, int t) {
  if (second) {
    score_tiles<3>(rows, columns, 1, 0, order, scores, g, t);
  } else {
    score_tiles<2>(rows, columns, 0, 0, order, scores, g, t);
    score_tiles<1>(rows, columns, 1, 3, order, scores, g, t);
  }
}

__device__ __forceinline__ void store_square(const StateRows& x, Square& to, int first_row, int g, int t) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<float2*>(&to[first_row + g + 8 * half][8 * n + 2 * t]) =
          make_float2(rounded(x[n][2 * half]), rounded(x[n][2 * half + 1]));
    }
  }
}
/// An operand [16, t], transposed: columns first_row … of rows [t, N].
__device__ __forceinline__ void store_transposed(const uint32_t (&x)[kTokenTiles][4], Rows& to, int first_row,
                                                 int g, int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[8 * n + 2 * t + i / 2][first_row + g + 8 * (i % 2)] = __uint_as_float(x[n][i]);
    }
  }
}

/// Two tiles of 16 tokens by two of 8 columns.
using Columns = float[2][2][4];

/// x [t, 16 columns] += rows [t, N] · square [N, columns] for two pairs of x and rows.
__device__ __forceinline__ void add_rows_times_square(Columns& x, const Rows& x_rows, Columns& y,
                                                      const Rows& y_rows, const Square& square,
                                                      int first_column, int g, int t) {
#pragma unroll
  for (int kk = 0; kk < kTiles; ++kk) {
    uint32_t b[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      b[n][0] = __float_as_uint(square[8 * kk + t][first_column + 8 * n + g]);
      b[n][1] = __float_as_uint(square[8 * kk + t + 4][first_column + 8 * n + g]);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int row = 16 * m + g, k = 8 * kk + t;
      const uint32_t of_x[4] = {__float_as_uint(x_rows[row][k]), __float_as_uint(x_rows[row + 8][k]),
                                __float_as_uint(x_rows[row][k + 4]), __float_as_uint(x_rows[row + 8][k + 4])};
      const uint32_t of_y[4] = {__float_as_uint(y_rows[row][k]), __float_as_uint(y_rows[row + 8][k]),
                                __float_as_uint(y_rows[row][k + 4]), __float_as_uint(y_rows[row + 8][k + 4])};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma_tf32(x[m][n], of_x, b[n]);
        mma_tf32(y[m][n], of_y, b[n]);
      }
    }
  }
}

/// x [t, 16 columns] += scores [t, t′] · rows [t′, columns], or kTransposed: scores [t′, t]; for two pairs of
/// x and scores. kOrdered: the rows are, by row_of_token().
template <bool kTransposed, bool kOrdered>
__device__ __forceinline__ void add_scores_times_rows(Columns& x, const Scores& x_scores, Columns& y,
                                                      const Scores& y_scores, const Rows& rows,
                                                      int first_column, int g, int t) {
#pragma unroll
  for (int q = 0; q < kTokenTiles; ++q) {
    const int low = 8 * q + (kOrdered ? 2 * t : t), high = low + (kOrdered ? 1 : 4);  // tokens summed over
    uint32_t b[2][2];
#pragma unroll
    for (int n = 0; n < 2; ++n) column_of_rows(&rows[8 * q + t][first_column + 8 * n + g], b[n]);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      if (kTransposed ? q < 2 * m : q >= 2 * m + 2) continue;
      const int row = 16 * m + g;
      const auto operand_of = [&](const Scores& scores, uint32_t(&a)[4]) {
        a[0] = __float_as_uint(kTransposed ? scores[low][row] : scores[row][low]);
        a[1] = __float_as_uint(kTransposed ? scores[low][row + 8] : scores[row + 8][low]);
        a[2] = __float_as_uint(kTransposed ? scores[high][row] : scores[row][high]);
        a[3] = __float_as_uint(kTransposed ? scores[high][row + 8] : scores[row + 8][high]);
      };
      uint32_t of_x[4], of_y[4];
      operand_of(x_scores, of_x);
      operand_of(y_scores, of_y);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mma_tf32(x[m][n], of_x, b[n]);
        mma_tf32(y[m][n], of_y, b[n]);
      }
    }
  }
}

/// Calls each(m, n, i, token, column) for the pairs i, i + 1 of a lane's Columns.
template <typename Each>
__device__ __forceinline__ void for_pairs(int first_column, int g, int t, const Each& each) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) each(m, n, i, 16 * m + g + 4 * i, first_column + 8 * n + 2 * t);
    }
  }
}
__device__ __forceinline__ float2 pair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ __forceinline__ void set_pair(float* p, float x, float y) {
  *reinterpret_cast<float2*>(p) = make_float2(x, y);
}

/// What is there of gradients that are added to: asked for before the products, which hide the wait.
__device__ __forceinline__ void load_pairs(Columns& x, const float* from, int stride, int tokens,
                                           int first_column, int g, int t) {
  for_pairs(first_column, g, t, [&](int m, int n, int i, int token, int column) {
    float2 v = make_float2(0, 0);
    if (token < tokens) v = pair(from + static_cast<int64_t>(token) * stride + column);
    x[m][n][i] = v.x;
    x[m][n][i + 1] = v.y;
  });
}

/// Gradients of a and r of 16 columns, and their terms of that of log w. `at`: of the chunk's first token and
/// the head's first channel.
__device__ __forceinline__ void receptive_gradients(Shared& c, const Operands& o, const Outputs& out,
                                                    int64_t at, int stride, int tokens, int first_column,
                                                    int g, int t) {
  Columns da = {}, dr = {}, sums;
  load_pairs(sums, out.dr + at, stride, tokens, first_column, g, t);
  add_rows_times_square(da, c.z, dr, o.x.dy, c.state, first_column, g, t);
  add_scores_times_rows<false, false>(da, c.ab, dr, c.rb, o.x.b, first_column, g, t);
  add_scores_times_rows<false, false>(da, c.ak, dr, c.rk, o.k, first_column, g, t);
  for_pairs(first_column, g, t, [&](int m, int n, int i, int token, int column) {
    const float2 a = pair(&o.x.a[row_of_token(token)][column]), r = pair(&o.x.r[token][column]);
    set_pair(&c.shifted[token][column], a.x * da[m][n][i], a.y * da[m][n][i + 1]);
    set_pair(&c.after[token][column], r.x * dr[m][n][i], r.y * dr[m][n][i + 1]);
    if (token >= tokens) return;
    const float2 before = pair(token == 0 ? &c.log_start[column] : &c.w[token - 1][column]),
                 after = pair(&c.w[token][column]);
    const int64_t to = at + static_cast<int64_t>(token) * stride + column;
    set_pair(out.da + to, exp2_fast(before.x) * da[m][n][i], exp2_fast(before.y) * da[m][n][i + 1]);
    set_pair(out.dr + to, fmaf(exp2_fast(after.x), dr[m][n][i], sums[m][n][i]),
             fmaf(exp2_fast(after.y), dr[m][n][i + 1], sums[m][n][i + 1]));
  });
}
/// Of b and k.
__device__ __forceinline__ void written_gradients(Shared& c, const Operands& o, const Outputs& out,
                                                  int64_t at, int stride, int tokens, int first_column, int g,
                                                  int t) {
  Columns db = {}, dk = {}, sums;
  load_pairs(sums, out.dk + at, stride, tokens, first_column, g, t);
  add_rows_times_square(db, c.u, dk, o.v, c.gradient, first_column, g, t);
  float all[2][2] = {};
  for_pairs(first_column, g, t, [&](int m, int n, int i, int token, int column) {
    const float2 b = pair(&o.x.b[token][column]), k = pair(&o.k[token][column]);
    all[n][0] += b.x * db[m][n][i] + k.x * dk[m][n][i];
    all[n][1] += b.y * db[m][n][i + 1] + k.y * dk[m][n][i + 1];
  });
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      all[n][0] += __shfl_xor_sync(kAllLanes, all[n][0], lanes);
      all[n][1] += __shfl_xor_sync(kAllLanes, all[n][1], lanes);
    }
    if (g == 0) set_pair(&c.all[0][first_column + 8 * n + 2 * t], all[n][0], all[n][1]);
  }
  add_scores_times_rows<true, true>(db, c.ab, dk, c.ak, o.x.a, first_column, g, t);
  add_scores_times_rows<true, false>(db, c.rb, dk, c.rk, o.x.r, first_column, g, t);
  for_pairs(first_column, g, t, [&](int m, int n, int i, int token, int column) {
    const float2 b = pair(&o.x.b[token][column]), k = pair(&o.k[token][column]);
    set_pair(&c.also_after[token][column], -(b.x * db[m][n][i] + k.x * dk[m][n][i]),
             -(b.y * db[m][n][i + 1] + k.y * dk[m][n][i + 1]));
    if (token >= tokens) return;
    const float2 after = pair(&c.w[token][column]);
    const int64_t to = at + static_cast<int64_t>(token) * stride + column;
    const float grown_x = exp2_fast(-after.x), grown_y = exp2_fast(-after.y);
    set_pair(out.db + to, grown_x * db[m][n][i], grown_y * db[m][n][i + 1]);
    set_pair(out.dk + to, fmaf(grown_x, dk[m][n][i], sums[m][n][i]),
             fmaf(grown_y, dk[m][n][i + 1], sums[m][n][i + 1]));
  });
}

/// Sums of the terms of the gradient of log w over the tokens that come later, and dw. Threads 0 … 127
/// matter; all meet a barrier.
__device__ __forceinline__ void decay_gradients(Shared& c, float* dw, int64_t at, int stride, int tokens) {
  const int part = static_cast<int>(threadIdx.x) / (kHead / 4) % kScanParts,
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  const bool active = threadIdx.x < 128;
  float4 sums[kPartTokens];
  if (active) {
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = kPartTokens - 1; i >= 0; --i) {
      const int t = part * kPartTokens + i;
      const float4 shifted = load4(&c.shifted[t][column]);
      sum = plus(sum, plus(load4(&c.after[t][column]), load4(&c.also_after[t][column])));
      sums[i] = sum;
      sum = plus(sum, shifted);
    }
    store4(&c.parts[0][part][column], sum);
    sum = part == 0 ? load4(&c.all[0][column]) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kHead / kScanParts; ++i) {
      const int row = part * (kHead / kScanParts) + i;
      const float4 s = load4(&c.state[row][column]), g = load4(&c.gradient[row][column]);
      sum = make_float4(fmaf(s.x, g.x, sum.x), fmaf(s.y, g.y, sum.y), fmaf(s.z, g.z, sum.z),
                        fmaf(s.w, g.w, sum.w));
    }
    store4(&c.parts[1][part][column], sum);
  }
  __syncthreads();
  if (!active) return;
  float4 rest = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int p = 0; p < kScanParts; ++p) {
    rest = plus(rest, load4(&c.parts[1][p][column]));
    if (p > part) rest = plus(rest, load4(&c.parts[0][p][column]));
  }
#pragma unroll
  for (int i = 0; i < kPartTokens; ++i) {
    const int t = part * kPartTokens + i;
    if (t >= tokens) break;
    const float4 before = load4(t == 0 ? &c.log_start[column] : &c.w[t - 1][column]);
    const float4 decay = minus(load4(&c.w[t][column]), before), sum = plus(sums[i], rest);
    const auto over_decay = [](float x, float log) { return log < kLeastDecay ? 0.0f : x * exp2_fast(-log); };
    store4(dw + at + static_cast<int64_t>(t) * stride + column,
           make_float4(over_decay(sum.x, decay.x), over_decay(sum.y, decay.y), over_decay(sum.z, decay.z),
                       over_decay(sum.w, decay.w)));
  }
}

/// dv [16, t], transposed, of the first token and this lane's row g.
__device__ __forceinline__ void load_values(TokenColumns& dv, const float* from, int stride, int tokens,
                                            int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * n + 2 * t + i;
      const float* const at = from + static_cast<int64_t>(token) * stride;
      dv[n][i] = token < tokens ? at[0] : 0.0f;
      dv[n][i + 2] = token < tokens ? at[8] : 0.0f;
    }
  }
}

/// Blocks: heads (x), segments (y), sequences (z), each from its last chunk to its first. The gradient of the
/// state behind a segment lies in the place of Q if there are several.
__global__ void __launch_bounds__(kThreads, 1)
    gradients_kernel(Wkv7Inputs in, const float* dy, Wkv7Sequences sequences, int stride, int segment_rows,
                     const float* maps, const float* kept, Outputs out) {
  Shared& c = *dynamic_shared<Shared>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const Wkv7Sequence& sequence = sequences.all[blockIdx.z];
  const int rows = static_cast<int>(sequence.rows), first = static_cast<int>(blockIdx.y) * segment_rows;
  const int end = min(rows, first + segment_rows);
  if (first >= rows) return;
  const int head = static_cast<int>(blockIdx.x), heads = stride / kHead;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int g = lane / 4, t = lane % 4, first_row = warp % 4 * 16;
  const bool of_state = warp < 4;
  const int element = (first_row + g) * kHead + 2 * t;
  const int64_t at = sequence.begin * stride + head * kHead;
  const int64_t state_at = static_cast<int64_t>(head) * kStateElements + element;

  const auto tokens_from = [&](int from) { return min(kChunk, end - from); };
  const auto operands_of = [&](int from) -> Operands& { return c.operands[from / kChunk % 2]; };
  const auto fetch = [&](int from) {
    Operands& o = operands_of(from);
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    const int tokens = tokens_from(from);
    fetch_rows<kThreads, true>(o.x.a, in.a + offset, stride, tokens);
    fetch_rows<kThreads, false>(o.x.r, in.r + offset, stride, tokens);
    fetch_rows<kThreads, false>(o.x.b, in.b + offset, stride, tokens);
    fetch_rows<kThreads, false>(o.k, in.k + offset, stride, tokens);
    fetch_rows<kThreads, false>(o.v, in.v + offset, stride, tokens);
    fetch_rows<kThreads, false>(o.x.dy, dy + offset, stride, tokens);
  };
  const auto fetch_decays = [&](int from) {
    fetch_rows<kThreads, false>(c.w, in.w + at + static_cast<int64_t>(from) * stride, stride,
                                tokens_from(from));
    copy_async_commit();
  };
  const int last = first + (end - first - 1) / kChunk * kChunk;
  fetch(last);
  fetch_decays(last);
  StateRows s;  // of the state, or its gradient
#pragma unroll
  for (int n = 0; n < kTiles; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
  if (!of_state) {
    if (maps != nullptr) {
      const int64_t map = (static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y) * heads + head;
      load_rows(s, maps + map * 2 * kStateElements + kStateElements + element);
    } else if (sequence.state != nullptr) {
      load_rows(s, sequence.state + state_at);
    }
  }

  for (int from = last; from >= first; from -= kChunk) {
    const int tokens = tokens_from(from);
    const int64_t offset = at + static_cast<int64_t>(from) * stride;
    if (of_state) {
      const int64_t interval = sequence.first_interval + from / kChunk;
      load_rows(s, kept + interval * heads * kStateElements + state_at);
    }
    copy_async_wait<0>();
    __syncthreads();
    Operands& o = operands_of(from);
    const bool more = from > first;
    if (more) fetch(from - kChunk);
    Decays d;
    if (!sum_decays<kThreads>(c.w, tokens, &c.ab[0][0], d)) relieve(d);
    scale_operands(c, o, d);
    __syncthreads();

    if (more) {  // what else the next chunk reads
      const float* const others[] = {in.w, out.dr, out.dk, out.dv};
      const int thread = static_cast<int>(threadIdx.x) % 64, group = static_cast<int>(threadIdx.x) / 64;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i == group) prefetch_rows(others[i] + offset - kChunk * stride, stride, kChunk, thread);
      }
      if (threadIdx.x < kStateElements / 32) {
        const int64_t interval = sequence.first_interval + from / kChunk - 1;
        prefetch_l2(kept + (interval * heads + head) * kStateElements + 32 * threadIdx.x);
      }
    }
    half_of_scores(warp % 4 < 2 ? o.x.a : o.x.r, warp % 2 == 0 ? o.x.b : o.k, warp >= 4,
                   {warp % 4 < 2, false, warp % 4 < 2, warp % 4 != 0},
                   warp % 4 == 0   ? c.ab
                   : warp % 4 == 1 ? c.ak
                   : warp % 4 == 2 ? c.rb
                                   : c.rk,
                   g, t);
    TokenColumns x;
    uint32_t solved[kTokenTiles][4];
    if (of_state) {
      zero(x);
      scale_columns(s, c.to_middle, t);
      add_state_times_rows(x, s, o.x.a, row_of_token(g), t);
    } else {
      scale_columns(s, c.from_middle, t);
      begin_gradient(s, o.x, lane, x);
    }
    store_square(s, of_state ? c.state : c.gradient, first_row, g, t);
    __syncthreads();
    if (warp == 0) invert_blocks(c.ab, lane);
    __syncthreads();

    if (of_state) {
      uint32_t v[kTokenTiles][4];
      transposed_rows<true>(o.v, first_row, g, t, v);
      add_times_scores<false>(x, v, c.ak, g, t);
      solve(x, c.ab, g, t, solved);
      store_transposed(solved, c.u, first_row, g, t);
    } else {
      TokenColumns dv;
      uint32_t y[kTokenTiles][4];
      float* const dv_at = out.dv + offset + first_row + g;
      load_values(dv, dv_at, stride, tokens, t);
      add_state_times_rows(dv, s, o.k, g, t);
      end_gradient<true>(s, o.x, c.ab, c.rb, true, first_row, lane, x, y, solved);
      scale_columns(s, c.to_middle, t);
      store_transposed(solved, c.z, first_row, g, t);
      add_times_transposed_scores<false>(dv, y, c.rk, g, t);
      add_times_transposed_scores<true>(dv, solved, c.ak, g, t);
      store_tokens(dv, dv_at, stride, tokens, t);
    }
    __syncthreads();
    half_of_scores(warp % 4 < 2 ? c.z : o.x.dy, warp % 2 == 0 ? c.u : o.v, warp >= 4,
                   {false, false, warp % 4 < 2, true},
                   warp % 4 == 0   ? c.ab
                   : warp % 4 == 1 ? c.ak
                   : warp % 4 == 2 ? c.rb
                                   : c.rk,
                   g, t);
    __syncthreads();
    if (of_state) {
      receptive_gradients(c, o, out, offset, stride, tokens, first_row, g, t);
    } else {
      written_gradients(c, o, out, offset, stride, tokens, first_row, g, t);
    }
    __syncthreads();
    decay_gradients(c, out.dw, offset, stride, tokens);
    __syncthreads();
    if (more) fetch_decays(from - kChunk);
  }
  if (!of_state && first == 0 && sequence.state != nullptr) store_rows(s, sequence.state + state_at);
}

}  // namespace

void wkv7_backward_in_chunks(Gpu& gpu, const Wkv7Call& call, const Wkv7Gradients& gradients,
                             const Wkv7Sequences& sequences) {
  const int stride = static_cast<int>(call.r.dim(1)), heads = stride / kHead;
  const Wkv7Segments segments = wkv7_segments(gpu, sequences, heads);
  const Arena::Scope scope(gpu.scratch());
  float* maps = nullptr;
  if (segments.most > 1) {
    maps = gpu.scratch()
               .take(DType::f32, {sequences.count * segments.most, heads, 2, kStateElements})
               .as<float>();
    wkv7_backward_maps(gpu, call, gradients, sequences, segments, maps);
    wkv7_scan_segments(gpu, sequences, heads, segments, true, maps);
  }
  const dim3 blocks(static_cast<unsigned>(heads), static_cast<unsigned>(segments.most),
                    static_cast<unsigned>(sequences.count));
  const Outputs out{gradients.dr.as<float>(), gradients.dw.as<float>(), gradients.dk.as<float>(),
                    gradients.dv.as<float>(), gradients.da.as<float>(), gradients.db.as<float>()};
  launch(gpu, {blocks, kThreads, sizeof(Shared)}, gradients_kernel, inputs_of(call), gradients.dy.as<float>(),
         sequences, stride, static_cast<int>(segments.rows), maps, call.kept.as<float>(), out);
}

}  // namespace rwkvx::cuda
