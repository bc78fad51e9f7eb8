#pragma once

#include "ops/cuda/kernel.h"
#include "ops/cuda/wkv7_sequences.h"

/// A chunk of WKV-7 on the tensor cores; docs/math/wkv7.md, "In chunks". Factors are rounded to tf32, sums
/// are float32. A warp has 16 rows of the state, which it keeps in registers as the result of products, and
/// that is also how products take it as an operand when the columns of a step are numbered as in the result:
/// lane 4 g + t has columns 2 t and 2 t + 1 of 8, used as columns t and t + 4. What the other operand takes
/// along the columns is then a pair in memory. Where rows of tokens are what is summed over, the same
/// numbering says in which row of shared memory a token lies (row_of_token).
namespace rwkvx::cuda {

inline constexpr int kChunk = kWkv7Rows;
inline constexpr int kRowStride = kHead + 8;     // 8 mod 32: neither pairs along rows nor columns collide
inline constexpr int kScoreStride = kChunk + 8;  // the same
inline constexpr int kTiles = kHead / 8;         // of 8 columns
inline constexpr int kTokenTiles = kChunk / 8;
inline constexpr int kScanParts = 8;  // of the sum of logarithms over a chunk
inline constexpr int kPartTokens = kChunk / kScanParts;
/// log₂ of w where it is 0: what should vanish is multiplied with 2⁻³⁶.
inline constexpr float kResetLog = -36.0f;
/// Least log₂ of the product of w over a chunk with which factors stay far from the ends of float32. Below it
/// (4 resets in a chunk) the chunk goes token by token.
inline constexpr float kLeastLog = -140.0f;

using Rows = float[kChunk][kRowStride];      // [t, channel]
using Scores = float[kChunk][kScoreStride];  // [t, t′]
/// 16 rows of a state: tile n, columns 8 n + 2 t and 8 n + 2 t + 1 of rows g (0, 1) and g + 8 (2, 3).
using StateRows = float[kTiles][4];
/// 16 rows by the tokens of a chunk, the same.
using TokenColumns = float[kTokenTiles][4];

/// Tokens 2 t and 2 t + 1 of 8 lie in rows t and t + 4.
__device__ __forceinline__ int row_of_token(int t) { return (t & ~7) | (t & 7) >> 1 | (t & 1) << 2; }
__device__ __forceinline__ int token_of_row(int row) { return (row & ~7) | (row & 3) << 1 | (row >> 2 & 1); }

/// To tf32, to nearest: products take the upper 19 bits.
__device__ __forceinline__ uint32_t operand(float x) { return __float_as_uint(x) + 0x1000u; }
__device__ __forceinline__ float rounded(float x) { return __uint_as_float(operand(x)); }
__device__ __forceinline__ void zero(TokenColumns& x) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0;
}

/// A result as an operand [16 × 8].
__device__ __forceinline__ void as_operand(const float (&tile)[4], uint32_t (&a)[4]) {
  a[0] = operand(tile[0]);
  a[1] = operand(tile[2]);
  a[2] = operand(tile[1]);
  a[3] = operand(tile[3]);
}
/// The 8 × 8 operand whose columns are 8 rows in memory, from `row` (of this lane's g) on: summed over pairs
/// along them.
__device__ __forceinline__ void pairs_of_row(const float* row, uint32_t (&b)[2]) {
  const float2 pair = *reinterpret_cast<const float2*>(row);
  b[0] = __float_as_uint(pair.x);
  b[1] = __float_as_uint(pair.y);
}
/// The 8 × 8 operand that is summed over 8 rows in memory that row_of_token() has ordered.
__device__ __forceinline__ void column_of_rows(const float* at, uint32_t (&b)[2]) {
  b[0] = __float_as_uint(at[0]);
  b[1] = __float_as_uint(at[4 * kRowStride]);
}

/// sum [16, t] += x [16, N] · rowsᵀ [N, t]. Where rows are ordered by row_of_token(), `g` is too.
__device__ __forceinline__ void add_state_times_rows(TokenColumns& sum, const StateRows& x, const Rows& rows,
                                                     int g, int t) {
#pragma unroll
  for (int kk = 0; kk < kTiles; ++kk) {
    uint32_t a[4], b[2];
    as_operand(x[kk], a);
#pragma unroll
    for (int n = 0; n < kTokenTiles; ++n) {
      pairs_of_row(&rows[8 * n + g][8 * kk + 2 * t], b);
      mma_tf32(sum[n], a, b);
    }
  }
}

/// sum [16, t] += x [16, t′] · scoresᵀ; scores are lower triangular. `kPairs`: x numbers tokens in pairs, as
/// results and rows ordered by row_of_token() do.
template <bool kPairs>
__device__ __forceinline__ void add_times_scores(TokenColumns& sum, const uint32_t (&x)[kTokenTiles][4],
                                                 const Scores& scores, int g, int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int q = 0; q <= n; ++q) {
      uint32_t b[2];
      if constexpr (kPairs) {
        pairs_of_row(&scores[8 * n + g][8 * q + 2 * t], b);
      } else {
        b[0] = __float_as_uint(scores[8 * n + g][8 * q + t]);
        b[1] = __float_as_uint(scores[8 * n + g][8 * q + t + 4]);
      }
      mma_tf32(sum[n], x[q], b);
    }
  }
}
/// sum [16, t′] += x [16, t] · scores, the same.
template <bool kPairs>
__device__ __forceinline__ void add_times_transposed_scores(TokenColumns& sum,
                                                            const uint32_t (&x)[kTokenTiles][4],
                                                            const Scores& scores, int g, int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int q = n; q < kTokenTiles; ++q) {
      const int row = 8 * q + (kPairs ? 2 * t : t);
      const uint32_t b[2] = {__float_as_uint(scores[row][8 * n + g]),
                             __float_as_uint(scores[row + (kPairs ? 1 : 4)][8 * n + g])};
      mma_tf32(sum[n], x[q], b);
    }
  }
}

/// sum [16, N] += x [16, t] · rows [t, N], the rows ordered by row_of_token().
__device__ __forceinline__ void add_tokens_times_rows(StateRows& sum, const uint32_t (&x)[kTokenTiles][4],
                                                      const Rows& rows, int g, int t) {
#pragma unroll
  for (int q = 0; q < kTokenTiles; ++q) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      uint32_t b[2];
      column_of_rows(&rows[8 * q + t][8 * n + g], b);
      mma_tf32(sum[n], x[q], b);
    }
  }
}

/// x [16, t], transposed. `to`: of the first token and this lane's row g.
__device__ __forceinline__ void store_tokens(const TokenColumns& x, float* to, int stride, int tokens,
                                             int t) {
#pragma unroll
  for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = 8 * n + 2 * t + i;
      if (token >= tokens) continue;
      float* const at = to + static_cast<int64_t>(token) * stride;
      at[0] = x[n][i];
      at[8] = x[n][i + 2];
    }
  }
}

/// Columns first … first + 15 of rows as the operand [16, t]. `kRounded`: they are.
template <bool kRounded>
__device__ __forceinline__ void transposed_rows(const Rows& rows, int first, int g, int t,
                                                uint32_t (&x)[kTokenTiles][4]) {
  const auto as = [](float v) { return kRounded ? __float_as_uint(v) : operand(v); };
#pragma unroll
  for (int q = 0; q < kTokenTiles; ++q) {
    const float* at = &rows[8 * q + t][first + g];
    x[q][0] = as(at[0]);
    x[q][1] = as(at[8]);
    x[q][2] = as(at[4 * kRowStride]);
    x[q][3] = as(at[4 * kRowStride + 8]);
  }
}

/// How scores are found from the operands that they compare.
struct ScoreOrder {
  bool rows, columns;  // ordered by row_of_token(); scores are not
  bool strict;         // nothing on the diagonal
  bool round;          // all but what will be inverted
};
/// scores [16, 8 kCount] from 16 row_tile and 8 first on = rows · columnsᵀ below and on the diagonal, zero
/// above.
template <int kCount>
__device__ __forceinline__ void score_tiles(const Rows& rows, const Rows& columns, int row_tile, int first,
                                            ScoreOrder order, Scores& scores, int g, int t) {
  float sums[kCount][4] = {};
#pragma unroll
  for (int kk = 0; kk < kTiles; ++kk) {
    const int column = 8 * kk + 2 * t;
    uint32_t upper[2], lower[2];
    pairs_of_row(&rows[16 * row_tile + g][column], upper);
    pairs_of_row(&rows[16 * row_tile + g + 8][column], lower);
    const uint32_t a[4] = {upper[0], lower[0], upper[1], lower[1]};
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      uint32_t b[2];
      pairs_of_row(&columns[8 * (first + n) + g][column], b);
      mma_tf32(sums[n], a, b);
    }
  }
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int row = 16 * row_tile + g + 8 * (i / 2), column = 8 * (first + n) + 2 * t + i % 2;
      if (order.rows) row = token_of_row(row);
      if (order.columns) column = token_of_row(column);
      const float sum = order.round ? rounded(sums[n][i]) : sums[n][i];
      scores[row][column] =
          column < row || (column == row && !order.strict) ? sum : 0.0f;  // also of infinity
    }
  }
}
/// All of a matrix of scores, by one warp.
__device__ __forceinline__ void all_scores(const Rows& rows, const Rows& columns, ScoreOrder order,
                                           Scores& scores, int g, int t) {
  score_tiles<2>(rows, columns, 0, 0, order, scores, g, t);
  score_tiles<4>(rows, columns, 1, 0, order, scores, g, t);
}

/// In place: the two 16 × 16 blocks D on the diagonal of A_ab become (I − D)⁻¹ (by forward substitution:
/// powers of D can be large and cancel), what is below them is rounded. One warp.
__device__ __forceinline__ void invert_blocks(Scores& scores, int lane) {
  const int first = lane / 16 * 16, column = lane % 16;
  float x[16];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    float sum = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int j4 = 0; j4 < i; j4 += 4) {
      const float4 d = load4(&scores[first + i][first + j4]);
      sum = fmaf(d.x, x[j4], sum);
      if (j4 + 1 < i) sum = fmaf(d.y, x[j4 + 1], sum);
      if (j4 + 2 < i) sum = fmaf(d.z, x[j4 + 2], sum);
      if (j4 + 3 < i) sum = fmaf(d.w, x[j4 + 3], sum);
    }
    x[i] = sum;
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16; ++i) scores[first + i][first + column] = rounded(x[i]);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float& below = scores[16 + first / 2 + i][column];
    below = rounded(below);
  }
}

/// u [16, t] = x · (I − A_ab)⁻ᵀ, of which `inverse` is what invert_blocks() made; x is used up. The result is
/// an operand.
__device__ __forceinline__ void solve(TokenColumns& x, const Scores& inverse, int g, int t,
                                      uint32_t (&u)[kTokenTiles][4]) {
  float solved[kTokenTiles][4] = {};
  uint32_t b[2], a[4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int q = 2 * half; q < 2 * half + 2; ++q) {
      as_operand(x[q], a);
#pragma unroll
      for (int n = q; n < 2 * half + 2; ++n) {
        pairs_of_row(&inverse[8 * n + g][8 * q + 2 * t], b);
        mma_tf32(solved[n], a, b);
      }
    }
#pragma unroll
    for (int q = 2 * half; q < 2 * half + 2; ++q) {
      as_operand(solved[q], u[q]);
      if (half == 1) continue;
#pragma unroll
      for (int n = 2; n < kTokenTiles; ++n) {
        pairs_of_row(&inverse[8 * n + g][8 * q + 2 * t], b);
        mma_tf32(x[n], u[q], b);
      }
    }
  }
}

/// z [16, t] = u · (I − A_ab)⁻¹, the same.
__device__ __forceinline__ void solve_transposed(TokenColumns& u, const Scores& inverse, int g, int t,
                                                 uint32_t (&z)[kTokenTiles][4]) {
  float solved[kTokenTiles][4] = {};
  uint32_t a[4];
#pragma unroll
  for (int half = 1; half >= 0; --half) {
#pragma unroll
    for (int q = 2 * half; q < 2 * half + 2; ++q) {
      as_operand(u[q], a);
#pragma unroll
      for (int n = 2 * half; n <= q; ++n) {
        const uint32_t b[2] = {__float_as_uint(inverse[8 * q + 2 * t][8 * n + g]),
                               __float_as_uint(inverse[8 * q + 2 * t + 1][8 * n + g])};
        mma_tf32(solved[n], a, b);
      }
    }
#pragma unroll
    for (int q = 2 * half; q < 2 * half + 2; ++q) {
      as_operand(solved[q], z[q]);
      if (half == 0) continue;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t b[2] = {__float_as_uint(inverse[8 * q + 2 * t][8 * n + g]),
                               __float_as_uint(inverse[8 * q + 2 * t + 1][8 * n + g])};
        mma_tf32(u[n], z[q], b);
      }
    }
  }
}

/// Columns of x times factors [N].
__device__ __forceinline__ void scale_columns(StateRows& x, const float* factors, int t) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 factor = *reinterpret_cast<const float2*>(factors + 8 * n + 2 * t);
    x[n][0] *= factor.x;
    x[n][1] *= factor.y;
    x[n][2] *= factor.x;
    x[n][3] *= factor.y;
  }
}
/// `at`: of row g and column 2 t.
__device__ __forceinline__ void load_rows(StateRows& x, const float* at) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const float2 upper = *reinterpret_cast<const float2*>(at + 8 * n);
    const float2 lower = *reinterpret_cast<const float2*>(at + 8 * kHead + 8 * n);
    x[n][0] = upper.x;
    x[n][1] = upper.y;
    x[n][2] = lower.x;
    x[n][3] = lower.y;
  }
}
__device__ __forceinline__ void store_rows(const StateRows& x, float* at) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    *reinterpret_cast<float2*>(at + 8 * n) = make_float2(x[n][0], x[n][1]);
    *reinterpret_cast<float2*>(at + 8 * kHead + 8 * n) = make_float2(x[n][2], x[n][3]);
  }
}

/// The rows of tokens of a chunk to shared memory, zeros behind the last; `ordered` by row_of_token().
/// `from`: of the first token, of the head's first channel.
template <int kThreads, bool kOrdered, int kStride>
__device__ __forceinline__ void fetch_rows(float (&to)[kChunk][kStride], const float* from, int stride,
                                           int tokens) {
#pragma unroll
  for (int i = 0; i < kChunk * kHead / 4 / kThreads; ++i) {
    const int piece = static_cast<int>(threadIdx.x) + i * kThreads;
    const int t = piece / (kHead / 4), column = piece % (kHead / 4) * 4;
    const bool valid = t < tokens;
    copy_async_16(&to[kOrdered ? row_of_token(t) : t][column],
                  from + static_cast<int64_t>(valid ? t : 0) * stride + column, valid);
  }
}
__device__ __forceinline__ void prefetch_rows(const float* from, int stride, int tokens, int thread) {
  const int t = thread / 2, column = thread % 2 * 32;
  if (t < tokens) prefetch_l2(from + static_cast<int64_t>(t) * stride + column);
}

/// Logarithms of the decays of a chunk: sums within the parts of 4 tokens, for a thread's 4 columns.
struct Decays {
  float4 sums[kPartTokens];  // from the start of this thread's part
  float4 before, middle, all;
};
__device__ __forceinline__ float4 plus(float4 x, float4 y) {
  return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}
__device__ __forceinline__ float log_decay(float w) { return fmaxf(__logf(w) * 1.442695041f, kResetLog); }
__device__ __forceinline__ float4 power(float4 x, float4 y) {
  return make_float4(exp2_fast(x.x - y.x), exp2_fast(x.y - y.y), exp2_fast(x.z - y.z), exp2_fast(x.w - y.w));
}
__device__ __forceinline__ void scale4(float* x, float4 factor) {
  const float4 v = load4(x);
  store4(x, make_float4(rounded(v.x * factor.x), rounded(v.y * factor.y), rounded(v.z * factor.z),
                        rounded(v.w * factor.w)));
}

/// For threads 0 … 127. `parts` [kScanParts, N] in shared memory. Has a barrier of the block within. False
/// where the chunk must go token by token: the same for all threads.
template <int kThreads>
__device__ __forceinline__ bool sum_decays(const float (&w)[kChunk][kHead], int tokens, float* parts,
                                           Decays& d) {
  const int part = static_cast<int>(threadIdx.x) / (kHead / 4) % kScanParts,
            column = static_cast<int>(threadIdx.x) % (kHead / 4) * 4;
  float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int i = 0; i < kPartTokens; ++i) {
    const int t = part * kPartTokens + i;
    if (t < tokens) {
      const float4 x = load4(&w[t][column]);
      sum = plus(sum, make_float4(log_decay(x.x), log_decay(x.y), log_decay(x.z), log_decay(x.w)));
    }
    d.sums[i] = sum;
  }
  if (kThreads <= 128 || threadIdx.x < 128) store4(parts + part * kHead + column, sum);
  __syncthreads();
  d.before = d.all = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int p = 0; p < kScanParts; ++p) {
    if (p == part) d.before = d.all;
    d.all = plus(d.all, load4(parts + p * kHead + column));
  }
  d.middle = make_float4(0.5f * d.all.x, 0.5f * d.all.y, 0.5f * d.all.z, 0.5f * d.all.w);
  const float least = fminf(fminf(d.all.x, d.all.y), fminf(d.all.z, d.all.w));
  return !__any_sync(kAllLanes, least < kLeastLog);
}

}  // namespace rwkvx::cuda
