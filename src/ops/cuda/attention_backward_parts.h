#pragma once

#include "ops/cuda/attention_backward_lists.h"
#include "ops/cuda/kernel.h"

/// Between the parts of chunk_attention_backward().
namespace rwkvx::cuda {

inline constexpr float kScoreScale = 0.125f;  // 1 / √N
inline constexpr float kLog2E = 1.4426950408889634f;

struct AttentionBackward {
  ChunkTable table;
  ChunkLists lists;
  /// [H, R]: lse (times log₂e in bfloat16) and D of each query.
  const float2* statistics;
  float *dq, *dk, *dv;  // [R, C]
  __device__ __forceinline__ int64_t width() const { return static_cast<int64_t>(table.heads) * kHead; }
  /// Of a chunk's list: [begin, end) in rows of the head.
  __device__ __forceinline__ int2 list_of(int head, int chunk) const {
    if (lists.slots == 0) return make_int2(0, 0);
    const int* starts =
        lists.starts + head * (static_cast<int64_t>(table.count) * lists.slots + 1) + chunk * lists.slots;
    return make_int2(starts[0], starts[lists.slots]);
  }
  __device__ __forceinline__ const int* rows_of(int head) const {
    return lists.rows + head * table.rows * lists.slots;
  }
};

/// Queries that a block takes together: successive ones of their own chunk, or some that chose a chunk.
struct QueryTile {
  const int* list;    // of rows, or null
  int64_t first_row;  // where there is no list
  int count, chunk, in_chunk;
  __device__ __forceinline__ int64_t row(int i) const { return list != nullptr ? list[i] : first_row + i; }
};

/// Tile `tile` of those with which a head's queries look at their own chunk (slot < 0) or at what they chose
/// for a slot. False: there is none.
__device__ __forceinline__ bool find_queries(const AttentionBackward& a, int slot, int head, int tile,
                                             int size, QueryTile& found) {
  const ChunkTable& table = a.table;
  if (slot < 0) {
    const int of_chunk = (table.chunk_size + size - 1) / size;
    found.list = nullptr;
    found.chunk = tile / of_chunk;
    // Those that see the most keys come first.
    found.in_chunk = (of_chunk - 1 - tile % of_chunk) * size;
    const ChunkRows& chunk = table.chunks[found.chunk];
    found.first_row = chunk.first_row + found.in_chunk;
    found.count = min(size, chunk.rows - found.in_chunk);
    return found.count > 0;
  }
  const int* tiles =
      a.lists.tile_starts + (static_cast<int64_t>(head) * a.lists.slots + slot) * (table.count + 1);
  if (tile >= tiles[table.count]) return false;
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (tiles[middle] <= tile) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int* starts = a.lists.starts + head * (static_cast<int64_t>(table.count) * a.lists.slots + 1) +
                      low * a.lists.slots + slot;
  const int begin = starts[0] + (tile - tiles[low]) * size;
  found.list = a.rows_of(head) + begin;
  found.first_row = 0;
  found.in_chunk = 0;
  found.count = min(size, starts[1] - begin);
  found.chunk = low;
  return true;
}
/// Tiles that there may be.
inline int64_t most_tiles(const ChunkTable& table, int slot, int size) {
  if (slot < 0) return static_cast<int64_t>(table.count) * ((table.chunk_size + size - 1) / size);
  return table.rows / size + table.count;
}

/// In float32. `bf16_pages`: what the keys and values are stored in.
void attention_backward_f32(Gpu& gpu, const AttentionBackward& backward, const float* q, const float* dy,
                            bool bf16_pages);
/// By bfloat16 products. q and dy [H, R, N] rounded.
void attention_backward_bf16(Gpu& gpu, const AttentionBackward& backward, const Bf16* q, const Bf16* dy);
inline constexpr int kTileF32 = 64, kTileBf16 = 128;  // queries of which dq is computed together

}  // namespace rwkvx::cuda
