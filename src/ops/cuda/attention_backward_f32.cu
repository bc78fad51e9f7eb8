#include "ops/cuda/attention_backward_parts.h"
#include "ops/cuda/attention_backward_tiles.h"

namespace rwkvx::cuda {
namespace {

/// Shared memory: keys, values, queries, dy, p, ds and the queries' statistics.
struct Tiles {
  float *keys, *values, *q, *dy, *p, *ds;
  float2* statistics;
};
constexpr size_t kTilesBytes = 6 * kTileFloats * sizeof(float) + kTileRows * sizeof(float2);

__device__ __forceinline__ Tiles shared_tiles() {
  auto* at = dynamic_shared<float>();
  return {at,
          at + kTileFloats,
          at + 2 * kTileFloats,
          at + 3 * kTileFloats,
          at + 4 * kTileFloats,
          at + 5 * kTileFloats,
          reinterpret_cast<float2*>(at + 6 * kTileFloats)};
}

/// Rows [first, first + count) of a page, of one head.
template <typename Page>
__device__ __forceinline__ void load_keys(const Tiles& tiles, const ChunkRows& chunk, int head,
                                          int chunk_size, int first, int count) {
  const int64_t at = (static_cast<int64_t>(head) * chunk_size + first) * kHead;
  const Page* keys = static_cast<const Page*>(chunk.keys) + at;
  const Page* values = static_cast<const Page*>(chunk.values) + at;
  load_tile(tiles.keys, [&](int i) { return i < count ? keys + i * kHead : nullptr; });
  load_tile(tiles.values, [&](int i) { return i < count ? values + i * kHead : nullptr; });
}

/// Those from `count` on get no weight.
template <typename RowOf>
__device__ __forceinline__ void load_queries(const Tiles& tiles, const AttentionBackward& a, const float* q,
                                             const float* dy, int head, int count, const RowOf& row_of) {
  const int64_t width = a.width();
  load_tile(tiles.q, [&](int i) { return i < count ? q + row_of(i) * width + head * kHead : nullptr; });
  load_tile(tiles.dy, [&](int i) { return i < count ? dy + row_of(i) * width + head * kHead : nullptr; });
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTileRows) {
    tiles.statistics[i] =
        i < count ? a.statistics[head * a.table.rows + row_of(i)] : make_float2(INFINITY, 0);
  }
}

/// One block for each (tile of 64 keys, head, chunk).
template <typename Page>
__global__ void __launch_bounds__(kTileThreads, 2)
    key_gradients(AttentionBackward a, const float* q, const float* dy) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int of_chunk = (a.table.chunk_size + kTileRows - 1) / kTileRows;
  const int first = static_cast<int>(blockIdx.x % static_cast<unsigned>(of_chunk)) * kTileRows;
  const int index = static_cast<int>(blockIdx.x / static_cast<unsigned>(of_chunk));
  const int head = index % a.table.heads, c = index / a.table.heads;
  const ChunkRows chunk = a.table.chunks[c];
  const int count = min(kTileRows, chunk.rows - first);
  if (count <= 0) return;
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const Tiles tiles = shared_tiles();
  load_keys<Page>(tiles, chunk, head, a.table.chunk_size, first, count);
  float dk[4][4] = {}, dv[4][4] = {};

  const auto add_queries = [&](int queries, bool causal, int in_chunk, const auto& row_of) {
    __syncthreads();
    load_queries(tiles, a, q, dy, head, queries, row_of);
    __syncthreads();
    float p[4][4], ds[4][4];
    multiply_rows(p, tiles.keys, tiles.q);
    multiply_rows(ds, tiles.values, tiles.dy);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 statistics = tiles.statistics[x + 16 * j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool hidden = causal && first + 4 * y + i > in_chunk + x + 16 * j;
        p[i][j] = hidden ? 0.0f : expf(p[i][j] * kScoreScale - statistics.x);
        ds[i][j] = p[i][j] * (ds[i][j] - statistics.y);
      }
    }
    store_tile(tiles.p, p);
    store_tile(tiles.ds, ds);
    __syncthreads();
    add_product(dv, tiles.p, tiles.dy);
    add_product(dk, tiles.ds, tiles.q);
  };
  for (int at = first; at < chunk.rows; at += kTileRows) {
    add_queries(min(kTileRows, chunk.rows - at), at == first, at,
                [&](int i) { return chunk.first_row + at + i; });
  }
  const int2 listed = a.list_of(head, c);
  const int* rows = a.rows_of(head);
  for (int at = listed.x; at < listed.y; at += kTileRows) {
    add_queries(min(kTileRows, listed.y - at), false, 0,
                [&](int i) { return static_cast<int64_t>(rows[at + i]); });
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * y + i >= count) break;
    const int64_t to = (chunk.first_row + first + 4 * y + i) * a.width() + head * kHead + 4 * x;
    store4(a.dv + to, make_float4(dv[i][0], dv[i][1], dv[i][2], dv[i][3]));
    store4(a.dk + to, make_float4(dk[i][0] * kScoreScale, dk[i][1] * kScoreScale, dk[i][2] * kScoreScale,
                                  dk[i][3] * kScoreScale));
  }
}

/// One block for each (tile of queries, head). dq is written from the own chunk (slot < 0), then added to.
template <typename Page>
__global__ void __launch_bounds__(kTileThreads, 2)
    query_gradients(AttentionBackward a, int slot, const float* q, const float* dy) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.y);
  QueryTile tile;
  if (!find_queries(a, slot, head, static_cast<int>(blockIdx.x), kTileF32, tile)) return;
  const ChunkRows chunk = a.table.chunks[tile.chunk];
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const Tiles tiles = shared_tiles();
  load_queries(tiles, a, q, dy, head, tile.count, [&](int i) { return tile.row(i); });
  const int keys = slot < 0 ? tile.in_chunk + tile.count : chunk.rows;
  float dq[4][4] = {};
  for (int first = 0; first < keys; first += kTileRows) {
    __syncthreads();
    load_keys<Page>(tiles, chunk, head, a.table.chunk_size, first, min(kTileRows, keys - first));
    __syncthreads();
    float p[4][4], ds[4][4];
    multiply_rows(p, tiles.q, tiles.keys);
    multiply_rows(ds, tiles.dy, tiles.values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 statistics = tiles.statistics[4 * y + i];
      const int end = slot < 0 ? tile.in_chunk + 4 * y + i + 1 : keys;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool hidden = first + x + 16 * j >= end;
        ds[i][j] = hidden ? 0.0f : expf(p[i][j] * kScoreScale - statistics.x) * (ds[i][j] - statistics.y);
      }
    }
    store_tile(tiles.ds, ds);
    __syncthreads();
    add_product(dq, tiles.ds, tiles.keys);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * y + i >= tile.count) break;
    float* to = a.dq + tile.row(4 * y + i) * a.width() + head * kHead + 4 * x;
    float4 sum = make_float4(dq[i][0] * kScoreScale, dq[i][1] * kScoreScale, dq[i][2] * kScoreScale,
                             dq[i][3] * kScoreScale);
    if (slot >= 0) {
      const float4 before = load4(to);
      sum = make_float4(before.x + sum.x, before.y + sum.y, before.z + sum.z, before.w + sum.w);
    }
    store4(to, sum);
  }
}

template <typename Page>
void run(Gpu& gpu, const AttentionBackward& a, const float* q, const float* dy) {
  const ChunkTable& table = a.table;
  const int64_t key_tiles = most_tiles(table, -1, kTileRows) * table.heads;
  launch(gpu, {static_cast<unsigned>(key_tiles), kTileThreads, kTilesBytes}, key_gradients<Page>, a, q, dy);
  for (int slot = -1; slot < a.lists.slots; ++slot) {
    const dim3 grid(static_cast<unsigned>(most_tiles(table, slot, kTileF32)),
                    static_cast<unsigned>(table.heads));
    launch(gpu, {grid, kTileThreads, kTilesBytes}, query_gradients<Page>, a, slot, q, dy);
  }
}

}  // namespace

void attention_backward_f32(Gpu& gpu, const AttentionBackward& backward, const float* q, const float* dy,
                            bool bf16_pages) {
  if (bf16_pages) return run<Bf16>(gpu, backward, q, dy);
  run<float>(gpu, backward, q, dy);
}

}  // namespace rwkvx::cuda
