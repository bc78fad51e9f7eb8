#include "ops/cuda/attention_backward_parts.h"

/// Everything is computed with keys or queries in the rows of the first operand, a warp's own ones in
/// registers, so that probabilities and their gradients become operands where they were computed:
///   dk, dv: Sᵀ = K·Qᵀ, dPᵀ = V·dYᵀ, dV += Pᵀ·dY, dK += dSᵀ·Q       over tiles of queries
///   dq:     S = Q·Kᵀ, dP = dY·Vᵀ, dQ += dS·K                        over tiles of keys
/// That is 7 products instead of 5, and no sum that depends on timing.
namespace rwkvx::cuda {
namespace {

constexpr int kRows = 64;  // of a tile in shared memory
constexpr int kStages = 3;
constexpr int kRowBytes = kHead * 2;
constexpr int kTileBytes = kRows * kRowBytes;
constexpr int kPieces = kRowBytes / 16;
constexpr float kToLog2 = kScoreScale * kLog2E;

constexpr int kKeyWarps = 8, kKeysOfWarp = 16;
constexpr int kKeyThreads = 32 * kKeyWarps, kKeysOfBlock = kKeyWarps * kKeysOfWarp;
constexpr int kQueryWarps = 4, kQueriesOfWarp = 32;
constexpr int kQueryThreads = 32 * kQueryWarps;
static_assert(kTileBf16 == kQueryWarps * kQueriesOfWarp);

/// 16 bytes of a tile; those of 8 rows lie in different banks.
__device__ __forceinline__ unsigned char* piece_at(unsigned char* tile, int row, int piece) {
  return tile + row * kRowBytes + ((piece ^ (row & 7)) << 4);
}

/// The second operand of mma_bf16 for 16 rows of a tile as columns and channels 16·step .. as k: of the first
/// 8 rows in [0], [1], of the others in [2], [3].
__device__ __forceinline__ void load_columns(uint32_t (&b)[4], unsigned char* tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  ldmatrix_x4(b, piece_at(tile, row + matrix / 2 * 8 + lane % 8, 2 * step + matrix % 2));
}
/// The same for 16 rows as k and channels 16·step .. as columns.
__device__ __forceinline__ void load_transposed(uint32_t (&b)[4], unsigned char* tile, int row, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32, matrix = lane / 8;
  ldmatrix_x4_trans(b, piece_at(tile, row + matrix % 2 * 8 + lane % 8, 2 * step + matrix / 2));
}
__device__ __forceinline__ void multiply(float (&first)[4], float (&second)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[4]) {
  const uint32_t low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
  mma_bf16(first, a, low);
  mma_bf16(second, a, high);
}
/// Two results beside each other, [16 × 16], as a first operand.
__device__ __forceinline__ void to_operand(uint32_t (&a)[4], const float (&left)[4],
                                           const float (&right)[4]) {
  a[0] = pack_bf16(left[0], left[1]);
  a[1] = pack_bf16(left[2], left[3]);
  a[2] = pack_bf16(right[0], right[1]);
  a[3] = pack_bf16(right[2], right[3]);
}
/// First operands of 16 rows: `upper` is row g of the thread, `lower` row g + 8; null: zeros.
__device__ __forceinline__ void load_operand(uint32_t (&a)[4][4], const Bf16* upper, const Bf16* lower) {
  const int pair = 2 * (static_cast<int>(threadIdx.x) % 4);
  const auto at = [&](const Bf16* row, int channel) {
    return row != nullptr ? *reinterpret_cast<const uint32_t*>(row + channel + pair) : 0u;
  };
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    a[step][0] = at(upper, 16 * step);
    a[step][1] = at(lower, 16 * step);
    a[step][2] = at(upper, 16 * step + 8);
    a[step][3] = at(lower, 16 * step + 8);
  }
}

struct QueryStage {
  unsigned char q[kTileBytes], dy[kTileBytes];
  float statistics[2 * kRows];
};
struct KeyStage {
  unsigned char keys[kTileBytes], values[kTileBytes];
};

/// Streams the queries that see a tile of keys: those of the own chunk from the tile's first key on, then
/// those that chose the chunk.
struct QueryStream {
  const Bf16 *q, *dy;  // of the head
  const float2* statistics;
  int64_t own_row;  // of the first query
  const int* list;
  int own, listed, own_tiles;
  int rows[2];  // that this thread copies next; −1: none

  __device__ __forceinline__ int tiles() const { return own_tiles + (listed + kRows - 1) / kRows; }
  __device__ __forceinline__ void look_up(int tile) {
    const int i = static_cast<int>(threadIdx.x) / kPieces;
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
      if (tile < own_tiles) {
        const int at = tile * kRows + i + pass * (kRows / 2);
        rows[pass] = at < own ? static_cast<int>(own_row) + at : -1;
      } else {
        const int at = (tile - own_tiles) * kRows + i + pass * (kRows / 2);
        rows[pass] = at < listed ? list[at] : -1;
      }
    }
  }
  /// Begins to copy what look_up() has found, then looks up the tile behind it.
  __device__ __forceinline__ void fetch(QueryStage& stage, int tile) {
    static_assert(kKeyThreads == kPieces * kRows / 2);
    const int piece = static_cast<int>(threadIdx.x) % kPieces;
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
      const int i = static_cast<int>(threadIdx.x) / kPieces + pass * (kRows / 2);
      const bool valid = rows[pass] >= 0;
      const int64_t row = valid ? rows[pass] : own_row;
      copy_async_16(piece_at(stage.q, i, piece), q + row * kHead + piece * 8, valid);
      copy_async_16(piece_at(stage.dy, i, piece), dy + row * kHead + piece * 8, valid);
      if (piece != 0) continue;
      if (valid) {
        copy_async_8(stage.statistics + 2 * i, statistics + row);
      } else {
        stage.statistics[2 * i] = INFINITY;  // no weight
        stage.statistics[2 * i + 1] = 0;
      }
    }
    if (tile + 1 < tiles()) look_up(tile + 1);
  }
};

/// What 32 queries of a stage add to dk and dv of a warp's 16 keys. With kMasked, the thread's key g is seen
/// by queries `key` and later of these, key g + 8 by `key` + 8 and later.
template <bool kMasked>
__device__ __forceinline__ void add_queries(float (&dk)[8][4], float (&dv)[8][4],
                                            const uint32_t (&keys)[4][4], const uint32_t (&values)[4][4],
                                            QueryStage& stage, int first, int key) {
  const int pair = 2 * (static_cast<int>(threadIdx.x) % 4);
  float p[4][4], ds[4][4], lse[4][2];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const float4 two = load4(stage.statistics + 2 * (first + 8 * n + pair));
    lse[n][0] = two.x;
    lse[n][1] = two.z;
    ds[n][0] = ds[n][2] = -two.y;
    ds[n][1] = ds[n][3] = -two.w;
    p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t b[4];
      load_columns(b, stage.q, first + 16 * half, step);
      multiply(p[2 * half], p[2 * half + 1], keys[step], b);
      load_columns(b, stage.dy, first + 16 * half, step);
      multiply(ds[2 * half], ds[2 * half + 1], values[step], b);
    }
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float weight = exp2_fast(fmaf(p[n][i], kToLog2, -lse[n][i % 2]));
      if (kMasked && 8 * n + pair + i % 2 < key + i / 2 * 8) weight = 0;
      p[n][i] = weight;
      ds[n][i] *= weight;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t weights[4], gradients[4];
    to_operand(weights, p[2 * half], p[2 * half + 1]);
    to_operand(gradients, ds[2 * half], ds[2 * half + 1]);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      uint32_t b[4];
      load_transposed(b, stage.dy, first + 16 * half, step);
      multiply(dv[2 * step], dv[2 * step + 1], weights, b);
      load_transposed(b, stage.q, first + 16 * half, step);
      multiply(dk[2 * step], dk[2 * step + 1], gradients, b);
    }
  }
}

/// One block for each (tile of keys, head, chunk): the tiles of a chunk, which read the same queries, side by
/// side; early chunks, which more queries may have chosen, first.
__global__ void __launch_bounds__(kKeyThreads, 1)
    key_gradients(AttentionBackward a, const Bf16* q, const Bf16* dy) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int of_chunk = (a.table.chunk_size + kKeysOfBlock - 1) / kKeysOfBlock;
  const int first = static_cast<int>(blockIdx.x % static_cast<unsigned>(of_chunk)) * kKeysOfBlock;
  const int index = static_cast<int>(blockIdx.x / static_cast<unsigned>(of_chunk));
  const int head = index % a.table.heads, c = index / a.table.heads;
  const ChunkRows chunk = a.table.chunks[c];
  const int count = min(kKeysOfBlock, chunk.rows - first);
  if (count <= 0) return;
  auto* const stages = dynamic_shared<QueryStage>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_key = warp * kKeysOfWarp, upper = warp_key + lane / 4, lower = upper + 8;

  const int64_t rows_before = head * a.table.rows;
  const int2 listed = a.list_of(head, c);
  QueryStream stream;
  stream.q = q + rows_before * kHead;
  stream.dy = dy + rows_before * kHead;
  stream.statistics = a.statistics + rows_before;
  stream.own_row = chunk.first_row + first;
  stream.own = chunk.rows - first;
  stream.own_tiles = (stream.own + kRows - 1) / kRows;
  stream.list = a.lists.slots > 0 ? a.rows_of(head) + listed.x : nullptr;
  stream.listed = listed.y - listed.x;
  const int tiles = stream.tiles();
  stream.look_up(0);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < tiles) stream.fetch(stages[i], i);
    copy_async_commit();
  }

  uint32_t keys[4][4], values[4][4];
  {
    const int64_t page_row = static_cast<int64_t>(head) * a.table.chunk_size + first;
    const auto row = [&](const void* page, int key) {
      return key < count ? static_cast<const Bf16*>(page) + (page_row + key) * kHead : nullptr;
    };
    load_operand(keys, row(chunk.keys, upper), row(chunk.keys, lower));
    load_operand(values, row(chunk.values, upper), row(chunk.values, lower));
  }
  float dk[8][4] = {}, dv[8][4] = {};
  int stage = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    // Into the stage that all warps have left.
    const int ahead = stage == 0 ? kStages - 1 : stage - 1;
    if (tile + kStages - 1 < tiles) stream.fetch(stages[ahead], tile + kStages - 1);
    copy_async_commit();
    const int query = tile * kRows;  // as keys are counted, in the own chunk
    if (warp_key < count && (tile >= stream.own_tiles || query >= warp_key + kKeysOfWarp - 1)) {
#pragma unroll
      for (int from = 0; from < kRows; from += 32) {
        add_queries<false>(dk, dv, keys, values, stages[stage], from, 0);
      }
    } else if (warp_key < count) {
#pragma unroll 1
      for (int from = 0; from < kRows; from += 32) {
        if (query + from + 31 < warp_key) continue;
        add_queries<true>(dk, dv, keys, values, stages[stage], from, upper - query - from);
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();

  const int64_t width = a.width(),
                to = (chunk.first_row + first + upper) * width + head * kHead + 2 * (lane % 4);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    if (upper < count) {
      *reinterpret_cast<float2*>(a.dv + to + 8 * n) = make_float2(dv[n][0], dv[n][1]);
      *reinterpret_cast<float2*>(a.dk + to + 8 * n) =
          make_float2(dk[n][0] * kScoreScale, dk[n][1] * kScoreScale);
    }
    if (lower < count) {
      *reinterpret_cast<float2*>(a.dv + to + 8 * width + 8 * n) = make_float2(dv[n][2], dv[n][3]);
      *reinterpret_cast<float2*>(a.dk + to + 8 * width + 8 * n) =
          make_float2(dk[n][2] * kScoreScale, dk[n][3] * kScoreScale);
    }
  }
}

/// Queries of a warp, in two fragments of 16 rows, and what is summed for them.
struct WarpQueries {
  uint32_t q[2][4][4], dy[2][4][4];
  float lse[2][2], delta[2][2];  // of rows g and g + 8
  float dq[2][8][4];
};

/// What 16 keys of a stage add to dq. With kMasked, the query in row r of the warp sees those before `seen` +
/// r.
template <bool kMasked>
__device__ __forceinline__ void add_keys(WarpQueries& w, KeyStage& stage, int first, int seen) {
  const int lane = static_cast<int>(threadIdx.x) % 32, pair = 2 * (lane % 4);
  float p[2][2][4], ds[2][2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        p[m][n][i] = 0;
        ds[m][n][i] = -w.delta[m][i / 2];
      }
    }
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t b[4];
    load_columns(b, stage.keys, first, step);
    multiply(p[0][0], p[0][1], w.q[0][step], b);
    multiply(p[1][0], p[1][1], w.q[1][step], b);
    load_columns(b, stage.values, first, step);
    multiply(ds[0][0], ds[0][1], w.dy[0][step], b);
    multiply(ds[1][0], ds[1][1], w.dy[1][step], b);
  }
  uint32_t gradients[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float weight = exp2_fast(fmaf(p[m][n][i], kToLog2, -w.lse[m][i / 2]));
        if (kMasked && 8 * n + pair + i % 2 >= seen + 16 * m + lane / 4 + i / 2 * 8) weight = 0;
        ds[m][n][i] *= weight;
      }
    }
    to_operand(gradients[m], ds[m][0], ds[m][1]);
  }
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    uint32_t b[4];
    load_transposed(b, stage.keys, first, step);
    multiply(w.dq[0][2 * step], w.dq[0][2 * step + 1], gradients[0], b);
    multiply(w.dq[1][2 * step], w.dq[1][2 * step + 1], gradients[1], b);
  }
}

/// One block for each (tile of queries, head). dq is written from the own chunk (kOwn), then added to from
/// the chunks of one slot, where each query has at most one.
template <bool kOwn>
__global__ void __launch_bounds__(kQueryThreads, 2)
    query_gradients(AttentionBackward a, int slot, const Bf16* q, const Bf16* dy) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.y);
  QueryTile tile;
  if (!find_queries(a, kOwn ? -1 : slot, head, static_cast<int>(blockIdx.x), kTileBf16, tile)) return;
  const ChunkRows chunk = a.table.chunks[tile.chunk];
  [[maybe_unused]] constexpr int kTogether =
      kOwn ? 1 : 2;  // steps of 16 keys: more take more registers than there are
  auto* const stages = dynamic_shared<KeyStage>();
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int keys = kOwn ? tile.in_chunk + tile.count : chunk.rows, tiles = (keys + kRows - 1) / kRows;
  const int64_t page_at = static_cast<int64_t>(head) * a.table.chunk_size * kHead;
  const Bf16* const page_keys = static_cast<const Bf16*>(chunk.keys) + page_at;
  const Bf16* const page_values = static_cast<const Bf16*>(chunk.values) + page_at;
  const auto fetch = [&](KeyStage& stage, int first) {
    constexpr int kRowsOfPass = kQueryThreads / kPieces;
    const int piece = thread % kPieces;
#pragma unroll
    for (int pass = 0; pass < kRows / kRowsOfPass; ++pass) {
      const int i = thread / kPieces + pass * kRowsOfPass;
      const bool valid = first + i < keys;
      const int at = (valid ? first + i : 0) * kHead + piece * 8;
      copy_async_16(piece_at(stage.keys, i, piece), page_keys + at, valid);
      copy_async_16(piece_at(stage.values, i, piece), page_values + at, valid);
    }
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < tiles) fetch(stages[i], i * kRows);
    copy_async_commit();
  }

  WarpQueries w;
  const int warp_query = warp * kQueriesOfWarp;
  const int64_t rows_before = head * a.table.rows;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const Bf16 *q_rows[2], *dy_rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = warp_query + 16 * m + 8 * half + lane / 4;
      const bool valid = i < tile.count;
      const int64_t row = rows_before + (valid ? tile.row(i) : 0);
      const float2 statistics = valid ? a.statistics[row] : make_float2(INFINITY, 0);
      w.lse[m][half] = statistics.x;
      w.delta[m][half] = statistics.y;
      q_rows[half] = valid ? q + row * kHead : nullptr;
      dy_rows[half] = valid ? dy + row * kHead : nullptr;
    }
    load_operand(w.q[m], q_rows[0], q_rows[1]);
    load_operand(w.dy[m], dy_rows[0], dy_rows[1]);
#pragma unroll
    for (int n = 0; n < 8; ++n) w.dq[m][n][0] = w.dq[m][n][1] = w.dq[m][n][2] = w.dq[m][n][3] = 0;
  }
  int stage = 0;
  for (int t = 0; t < tiles; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    const int ahead = stage == 0 ? kStages - 1 : stage - 1;
    if (t + kStages - 1 < tiles) fetch(stages[ahead], (t + kStages - 1) * kRows);
    copy_async_commit();
    // A position, as keys are counted: that of the warp's first query, in its own chunk.
    const int position = tile.in_chunk + warp_query;
    if (warp_query < tile.count && (!kOwn || (t + 1) * kRows - 1 <= position)) {
#pragma unroll kTogether
      for (int from = 0; from < kRows; from += 16) add_keys<false>(w, stages[stage], from, 0);
    } else if (warp_query < tile.count) {
#pragma unroll 1
      for (int from = 0; from < kRows; from += 16) {
        const int key = t * kRows + from;
        if (key > position + kQueriesOfWarp - 1) break;
        add_keys<true>(w, stages[stage], from, position + 1 - key);
      }
    }
    stage = stage == kStages - 1 ? 0 : stage + 1;
  }
  copy_async_wait<0>();

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = warp_query + 16 * m + 8 * half + lane / 4;
      if (i >= tile.count) continue;
      float* const to = a.dq + tile.row(i) * a.width() + head * kHead + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        float2* const at = reinterpret_cast<float2*>(to + 8 * n);
        float2 sum = make_float2(w.dq[m][n][2 * half] * kScoreScale, w.dq[m][n][2 * half + 1] * kScoreScale);
        if (!kOwn) {
          const float2 before = *at;
          sum = make_float2(before.x + sum.x, before.y + sum.y);
        }
        *at = sum;
      }
    }
  }
}

}  // namespace

void attention_backward_bf16(Gpu& gpu, const AttentionBackward& backward, const Bf16* q, const Bf16* dy) {
  const ChunkTable& table = backward.table;
  const auto heads = static_cast<unsigned>(table.heads);
  const int64_t key_tiles = most_tiles(table, -1, kKeysOfBlock) * table.heads;
  launch(gpu, {static_cast<unsigned>(key_tiles), kKeyThreads, kStages * sizeof(QueryStage)}, key_gradients,
         backward, q, dy);
  const auto grid = [&](int slot) {
    return dim3(static_cast<unsigned>(most_tiles(table, slot, kTileBf16)), heads);
  };
  launch(gpu, {grid(-1), kQueryThreads, kStages * sizeof(KeyStage)}, query_gradients<true>, backward, -1, q,
         dy);
  for (int slot = 0; slot < backward.lists.slots; ++slot) {
    launch(gpu, {grid(slot), kQueryThreads, kStages * sizeof(KeyStage)}, query_gradients<false>, backward,
           slot, q, dy);
  }
}

}  // namespace rwkvx::cuda
