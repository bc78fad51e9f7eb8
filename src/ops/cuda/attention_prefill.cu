#include "base/assert.h"
#include "ops/cuda/attention_flash.h"
#include "ops/cuda/attention_hopper.h"

/// Chunk attention of many rows: keys and values are read by chunk, for all rows that see it.
namespace rwkvx::cuda {
namespace {

using flash::kKeys;
using flash::kQueries;

/// What the kernels for a slice of heads pass on.
struct Slice {
  int32_t first_head, heads;
  int32_t chunks;       // of all pieces
  int32_t* counts;      // [heads, chunks]: rows that see a chunk
  int32_t* next;        // [heads, chunks]: where the next entry goes
  int32_t* entries;     // row · top + slot, list after list
  int4* tiles;          // list, first entry, entries
  int32_t* tile_count;  // [1]
  float* parts;         // [R, heads, top, N]: attention to one chosen chunk
  float* part_logs;     // [R, heads, top]
};

constexpr int kListThreads = 256;
constexpr bool kHopperWay = true;  // where it can be had

/// Calls each(list, row · top + slot) for what this thread's row, head and slot chose.
template <typename Each>
__device__ __forceinline__ void for_choice(const Pieces& pieces, const Attend& a, const Slice& slice,
                                           int64_t rows, const Each& each) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kListThreads + threadIdx.x;
  if (i >= rows * slice.heads * a.top) return;
  const auto slot = static_cast<int32_t>(i % a.top);
  const auto head = static_cast<int32_t>(i / a.top % slice.heads);
  const int64_t row = i / a.top / slice.heads;
  const Piece& piece = piece_of_row(pieces, row);
  if (piece.dense != 0) return;
  const int32_t chunk = a.chosen[(row * a.heads + slice.first_head + head) * a.stride + slot];
  if (chunk >= 0) {
    each(head * slice.chunks + piece.lists + chunk, static_cast<int32_t>(row) * a.top + slot);
  }
}

__global__ void __launch_bounds__(kListThreads)
    count_kernel(const __grid_constant__ Pieces pieces, Attend a, Slice slice, int64_t rows) {
  allow_next_kernel();
  wait_for_previous_kernel();
  for_choice(pieces, a, slice, rows, [&](int32_t list, int32_t) { atomicAdd(slice.counts + list, 1); });
}

/// The order within a list is that of chance; no result depends on it.
__global__ void __launch_bounds__(kListThreads)
    scatter_kernel(const __grid_constant__ Pieces pieces, Attend a, Slice slice, int64_t rows) {
  allow_next_kernel();
  wait_for_previous_kernel();
  for_choice(pieces, a, slice, rows,
             [&](int32_t list, int32_t entry) { slice.entries[atomicAdd(slice.next + list, 1)] = entry; });
}

/// Cuts the lists into tiles of queries. A single block.
__global__ void __launch_bounds__(1024) plan_kernel(Slice slice) {
  __shared__ int32_t warp_entries[32], warp_tiles[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t lists = slice.heads * slice.chunks;
  int32_t entries_before = 0, tiles_before = 0;
  for (int32_t base = 0; base < lists; base += 1024) {
    const int32_t list = base + static_cast<int32_t>(threadIdx.x);
    const int32_t count = list < lists ? slice.counts[list] : 0;
    const int32_t tiles = (count + kQueries - 1) / kQueries;
    int32_t entry_sum = count, tile_sum = tiles;  // up to this thread
#pragma unroll
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      const int32_t e = __shfl_up_sync(kAllLanes, entry_sum, lanes);
      const int32_t t = __shfl_up_sync(kAllLanes, tile_sum, lanes);
      if (lane >= static_cast<unsigned>(lanes)) {
        entry_sum += e;
        tile_sum += t;
      }
    }
    __syncthreads();
    if (lane == 31) {
      warp_entries[warp] = entry_sum;
      warp_tiles[warp] = tile_sum;
    }
    __syncthreads();
    int32_t all_entries = 0, all_tiles = 0;
    for (unsigned w = 0; w < 32; ++w) {
      if (w == warp) {
        entry_sum += all_entries;
        tile_sum += all_tiles;
      }
      all_entries += warp_entries[w];
      all_tiles += warp_tiles[w];
    }
    if (list < lists) {
      const int32_t first = entries_before + entry_sum - count;
      slice.next[list] = first;
      int4* const to = slice.tiles + tiles_before + tile_sum - tiles;
      for (int32_t t = 0; t < tiles; ++t) {
        to[t] = make_int4(list, first + t * kQueries, min(kQueries, count - t * kQueries), 0);
      }
    }
    entries_before += all_entries;
    tiles_before += all_tiles;
  }
  if (threadIdx.x == 0) *slice.tile_count = tiles_before;
}

/// What of a step of keys some queries see.
enum class Sight { none, part, all };

/// The two ways for a tile of queries. attend(): stage(): writes them to shared memory; sight(low, high,
/// first): what queries low .. high see of the step from token `first`; visible(r, first, key): whether the
/// thread's query r sees one key of it.
template <typename T>
struct AnyGpu {
  static constexpr int kSharedBytes = flash::kSharedBytes;

  static __device__ __forceinline__ unsigned char* shared() { return dynamic_shared<unsigned char>(); }
  static __device__ __forceinline__ int32_t query_of(int r) {
    const auto thread = static_cast<int32_t>(threadIdx.x);
    return thread / 32 * 32 + 8 * r + thread % 32 / 4;
  }
  template <typename Stage, typename See, typename Visible>
  static __device__ __forceinline__ void attend(flash::Rows& rows, unsigned char* shared, const Kv& kv,
                                                int32_t head, uint32_t begin, uint32_t end,
                                                const Stage& stage, const See& sight,
                                                const Visible& visible) {
    stage();
    __syncthreads();
    uint32_t q[2][4][4];
    flash::load_queries(q, shared);
    const auto low = static_cast<int32_t>(threadIdx.x / 32 * 32);
    flash::KeyLoader<T> loader(kv, static_cast<uint32_t>(head), end);
    flash::over_keys(
        shared + flash::kQueryBytes, loader, begin, end,
        [&](const unsigned char* keys, const unsigned char* values, uint32_t first) {
          const Sight seen = sight(low, low + 31, first);
          if (seen == Sight::none) return;
          flash::attend(rows, q, keys, values, seen == Sight::part,
                        [&](unsigned r, unsigned key) { return visible(static_cast<int>(r), first, key); });
        });
  }
};

/// Keys and values of bfloat16, in chunks of whole steps.
struct HopperGpu {
  static constexpr int kSharedBytes = hopper::kSharedBytes;

  static __device__ __forceinline__ unsigned char* shared() {
    return aligned_up(dynamic_shared<unsigned char>(), hopper::kAlign);
  }
  static __device__ __forceinline__ int32_t query_of(int r) { return hopper::query_of(r); }
  template <typename Stage, typename See, typename Visible>
  static __device__ __forceinline__ void attend(flash::Rows& rows, unsigned char* shared, const Kv& kv,
                                                int32_t head, uint32_t begin, uint32_t end,
                                                const Stage& stage, const See& sight,
                                                const Visible& visible) {
    hopper::Steps steps(kv, head, begin, end);
    const auto warp_low = static_cast<int32_t>(threadIdx.x / 32 * 16);
    hopper::attend(
        rows, shared, steps, begin, stage,
        [&](int m, uint32_t first) {
          const int32_t low = 64 * m + warp_low;
          return sight(low, low + 15, first) != Sight::all;
        },
        visible);
  }
};

/// A tile of a list's rows against all of its chunk.
template <typename Way>
__global__ void __launch_bounds__(flash::kThreads, 2)
    chosen_kernel(const __grid_constant__ Pieces pieces, Attend a, Slice slice) {
  __shared__ int32_t entries[kQueries];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int4 tile = slice.tiles[blockIdx.x];
  if (static_cast<int32_t>(blockIdx.x) >= *slice.tile_count) return;
  auto* const shared = Way::shared();
  const int32_t head = tile.x / slice.chunks, chunk_of_all = tile.x % slice.chunks;
  int s = 0;
  while (s + 1 < pieces.count && chunk_of_all >= pieces.of[s + 1].lists) ++s;
  const Piece& piece = pieces.of[s];
  const auto B = static_cast<uint32_t>(piece.kv.chunk_size);
  const uint32_t begin = static_cast<uint32_t>(chunk_of_all - piece.lists) * B, end = begin + B;

  const auto i = static_cast<int32_t>(threadIdx.x);
  entries[i] = i < tile.z ? slice.entries[tile.y + i] : -1;
  __syncthreads();
  flash::Rows rows{};
  for (float& highest : rows.highest) highest = -INFINITY;
  Way::attend(
      rows, shared, piece.kv, slice.first_head + head, begin, end,
      [&] {
        flash::stage_queries(shared, a, slice.first_head + head, [&](int32_t query) {
          return entries[query] < 0 ? -1 : static_cast<int64_t>(entries[query] / a.top);
        });
      },
      [&](int32_t low, int32_t, uint32_t first) {
        if (low >= tile.z) return Sight::none;
        return end - first < kKeys ? Sight::part : Sight::all;
      },
      [&](int, uint32_t first, unsigned key) { return key < end - first; });
  float logs[4];
  flash::finish(rows, logs);
  const int32_t lane = i % 32;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const int32_t entry = entries[Way::query_of(r)];
    if (entry < 0) continue;
    const int64_t at = (static_cast<int64_t>(entry / a.top) * slice.heads + head) * a.top + entry % a.top;
    if (lane % 4 == 0) slice.part_logs[at] = logs[r];
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      *reinterpret_cast<float2*>(slice.parts + at * kHead + 8 * n + 2 * (lane % 4)) =
          make_float2(rows.o[r / 2][n][r % 2 * 2], rows.o[r / 2][n][r % 2 * 2 + 1]);
    }
  }
}

/// A tile of consecutive rows against the keys of their own chunks, or of all where a piece is dense; then
/// what chosen_kernel found is added, and the result written.
template <typename Way, typename Y>
__global__ void __launch_bounds__(flash::kThreads, 2)
    own_kernel(const __grid_constant__ Pieces pieces, Attend a, Slice slice, int32_t tiles) {
  allow_next_kernel();
  wait_for_previous_kernel();
  auto* const shared = Way::shared();
  // The longest first; neighbours share a head's keys.
  const auto head = slice.first_head + static_cast<int32_t>(blockIdx.x) / tiles;
  const int32_t tile = tiles - 1 - static_cast<int32_t>(blockIdx.x) % tiles;
  int s = 0;
  while (s + 1 < pieces.count && tile >= pieces.of[s + 1].tiles) ++s;
  const Piece& piece = pieces.of[s];
  const bool dense = piece.dense != 0;
  const auto B = static_cast<int32_t>(piece.kv.chunk_size), position = static_cast<int32_t>(piece.position);
  // Tiles begin at multiples of their size, so that few have rows of several chunks.
  const int32_t start = (position / kQueries + tile - piece.tiles) * kQueries;
  const int32_t low = max(start, position), high = min(start + kQueries, position + piece.rows) - 1;
  const auto begin = static_cast<uint32_t>(dense ? 0 : low / B * B), end = static_cast<uint32_t>(high) + 1;
  const int64_t first_row = piece.row - pieces.first_row() - position;  // of token 0
  flash::Rows rows{};
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  int32_t token[4], from[4];  // of the thread's rows
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    rows.highest[r] = -INFINITY;
    token[r] = start + Way::query_of(r);
    from[r] = dense ? 0 : token[r] / B * B;
  }
  Way::attend(
      rows, shared, piece.kv, head, begin, end,
      [&] {
        flash::stage_queries(shared, a, head, [&](int32_t query) {
          const int32_t at = start + query;
          return at < low || at > high ? int64_t{-1} : first_row + at;
        });
      },
      [&](int32_t low_query, int32_t high_query, uint32_t at) {
        const auto first = static_cast<int32_t>(at);
        const int32_t from_low = start + low_query, to_high = start + high_query;
        if (from_low > high || to_high < low || first > to_high) return Sight::none;
        if (!dense && first + kKeys <= max(from_low, low) / B * B) return Sight::none;
        const bool all = first + kKeys - 1 <= from_low && (dense || first >= to_high / B * B);
        return all ? Sight::all : Sight::part;
      },
      [&](int r, uint32_t first, unsigned key) {
        const auto k = static_cast<int32_t>(first + key);
        return k <= token[r] && k >= from[r];
      });
  float logs[4];
  flash::finish(rows, logs);
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    if (token[r] < low || token[r] > high) continue;
    const int64_t row = first_row + token[r];
    const int32_t seen = dense ? 0 : min(token[r] / B, a.top);
    const int64_t at = (row * slice.heads + head - slice.first_head) * a.top;
    float most = logs[r];
    for (int32_t slot = 0; slot < seen; ++slot) most = fmaxf(most, slice.part_logs[at + slot]);
    float y[8][2];
    float total = exp2_fast(logs[r] - most);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      y[n][0] = total * rows.o[r / 2][n][r % 2 * 2];
      y[n][1] = total * rows.o[r / 2][n][r % 2 * 2 + 1];
    }
    for (int32_t slot = 0; slot < seen; ++slot) {
      const float weight = exp2_fast(slice.part_logs[at + slot] - most);
      total += weight;
      const float* const part = slice.parts + (at + slot) * kHead + 2 * (lane % 4);
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 v = *reinterpret_cast<const float2*>(part + 8 * n);
        y[n][0] += weight * v.x;
        y[n][1] += weight * v.y;
      }
    }
    const int64_t index = row * a.heads + head;
    if (a.lse != nullptr && lane % 4 == 0) a.lse[index] = (most + log2f(total)) / kLog2E;
    const float inverse = 1.0f / total;
    Y* const to = static_cast<Y*>(a.y) + index * kHead + 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      if constexpr (sizeof(Y) == 2) {
        *reinterpret_cast<uint32_t*>(to + 8 * n) = pack_bf16(y[n][0] * inverse, y[n][1] * inverse);
      } else {
        *reinterpret_cast<float2*>(to + 8 * n) = make_float2(y[n][0] * inverse, y[n][1] * inverse);
      }
    }
  }
}

constexpr int64_t kMostParts = int64_t{1} << 21;  // kept at a time: 0.54 GB

template <typename Way>
void attend(Gpu& gpu, Pieces& pieces, const Attend& a) {
  const int64_t rows = pieces.rows();
  int32_t tiles = 0, lists = 0;
  bool sparse = false;
  for (int i = 0; i < pieces.count; ++i) {
    Piece& piece = pieces.of[i];
    piece.tiles = tiles;
    piece.lists = lists;
    tiles +=
        static_cast<int32_t>((piece.position + piece.rows - 1) / kQueries - piece.position / kQueries + 1);
    lists += piece.chunks();
    sparse = sparse || piece.dense == 0;
  }
  sparse = sparse && a.top > 0;
  int64_t heads = a.heads;
  if (sparse) heads = std::clamp<int64_t>(kMostParts / (rows * a.top), 1, a.heads);

  const Arena::Scope scope(gpu.scratch());
  Slice slice{};
  slice.chunks = lists;
  int64_t entries = 0, most_tiles = 0;
  if (sparse) {
    Arena& arena = gpu.scratch();
    const auto ints = [&](int64_t n) { return arena.take(DType::i32, {n}).as<int32_t>(); };
    entries = rows * heads * a.top;
    most_tiles = entries / kQueries + heads * lists;
    slice.counts = ints(heads * lists);
    slice.next = ints(heads * lists);
    slice.entries = ints(entries);
    slice.tiles = reinterpret_cast<int4*>(ints(4 * most_tiles));
    slice.tile_count = ints(1);
    slice.parts = arena.take(DType::f32, {entries, kHead}).as<float>();
    slice.part_logs = arena.take(DType::f32, {entries}).as<float>();
  }
  for (int32_t first = 0; first < a.heads; first += slice.heads) {
    slice.first_head = first;
    slice.heads = static_cast<int32_t>(std::min<int64_t>(heads, a.heads - first));
    if (sparse) {
      const int64_t choices = rows * slice.heads * a.top;
      gpu.zero(slice.counts, static_cast<size_t>(slice.heads) * static_cast<size_t>(lists) * sizeof(int32_t));
      launch(gpu, {blocks_for(choices, kListThreads), kListThreads}, count_kernel, pieces, a, slice, rows);
      launch(gpu, {1, 1024}, plan_kernel, slice);
      launch(gpu, {blocks_for(choices, kListThreads), kListThreads}, scatter_kernel, pieces, a, slice, rows);
      const int64_t blocks = choices / kQueries + static_cast<int64_t>(slice.heads) * lists;
      launch(gpu, {blocks_for(blocks, 1), flash::kThreads, Way::kSharedBytes}, chosen_kernel<Way>, pieces, a,
             slice);
    }
    const Grid grid{static_cast<unsigned>(tiles * slice.heads), flash::kThreads, Way::kSharedBytes};
    if (a.y_bf16) {
      launch(gpu, grid, own_kernel<Way, Bf16>, pieces, a, slice, tiles);
    } else {
      launch(gpu, grid, own_kernel<Way, float>, pieces, a, slice, tiles);
    }
  }
}

bool whole_steps(const Pieces& pieces) {
  bool whole = true;
  for (int i = 0; i < pieces.count; ++i) whole = whole && pieces.of[i].kv.chunk_size % kKeys == 0;
  return whole;
}

}  // namespace

bool can_attend_by_chunk(const Pieces& pieces, DType kv) {
  return kv == DType::bf16 || (kv == DType::i8 && whole_steps(pieces));
}

void attend_by_chunk(Gpu& gpu, Pieces& pieces, const Attend& a, DType kv) {
  RWKVX_ASSERT(can_attend_by_chunk(pieces, kv));
  if (kv == DType::i8) return attend<AnyGpu<int8_t>>(gpu, pieces, a);
  if (kHopperWay && kHasWgmma && gpu.capability() == 90 && whole_steps(pieces)) {
    return attend<HopperGpu>(gpu, pieces, a);
  }
  attend<AnyGpu<Bf16>>(gpu, pieces, a);
}

}  // namespace rwkvx::cuda
