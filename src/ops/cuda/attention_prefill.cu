#include "base/assert.h"
#include "ops/cuda/attention_flash.h"
#include "ops/cuda/attention_hopper.h"
#include "ops/cuda/attention_near.h"

/// Chunk attention of many rows: keys and values are read by chunk, for all rows that see it.
namespace rwkvx::cuda {
namespace {

using flash::kKeys;
using flash::kQueries;

/// What the kernels for a slice of heads pass on.
struct Slice {
  int32_t first_head, heads;
  int32_t chunks;        // of all pieces: the lists of a head
  int32_t choices;       // rows · top: the most entries of a head
  int32_t most_tiles;    // of a head
  int32_t* lists;        // [heads, chunks]: rows that see a chunk; then where its list's next entry goes
  int32_t* entries;      // [heads, choices]: row · top + slot, list after list
  int4* tiles;           // [heads, most_tiles]: list, first entry, entries
  int32_t* tile_counts;  // [heads]
  float* parts;          // [R, heads, top, N]: attention to one chosen chunk
  float* part_logs;      // [R, heads, top]
};

constexpr int kListThreads = 256;
constexpr int kThreadChoices = 16;
constexpr int kBlockChoices = kListThreads * kThreadChoices;
constexpr int kBlockLists = kBlockChoices;  // counted in shared memory; in more lists few choices meet
constexpr int kPlanThreads = 512;
constexpr bool kHopperWay = true;  // where it can be had

/// Counts the entries of every list, or writes them where plan_kernel said. A block takes some rows of one
/// head and adds to each list's number in global memory once, because every row would have to wait there. The
/// order within a list is that of chance; no result depends on it.
template <bool kWrite>
__global__ void __launch_bounds__(kListThreads, 4)
    list_kernel(const __grid_constant__ Pieces pieces, Attend a, Slice slice) {
  __shared__ int32_t counts[kBlockLists];
  allow_next_kernel();
  wait_for_previous_kernel();
  const auto block = static_cast<int32_t>(blockIdx.x), thread = static_cast<int32_t>(threadIdx.x);
  const int32_t head = block % slice.heads;  // neighbours read the same sectors of a.chosen
  const int32_t first = block / slice.heads * kBlockChoices;
  const int32_t end = min(first + kBlockChoices, slice.choices);
  const auto top = static_cast<uint32_t>(a.top);
  const auto piece_of = [&](int32_t choice, int s) {  // that of an earlier choice
    while (s + 1 < pieces.count && choice >= (pieces.of[s + 1].row - pieces.first_row()) * a.top) ++s;
    return s;
  };
  int s = piece_of(first, 0);
  const int last = piece_of(end - 1, s);
  const int32_t first_list = pieces.of[s].lists;
  const int32_t lists = (last + 1 < pieces.count ? pieces.of[last + 1].lists : slice.chunks) - first_list;
  int32_t* const all_counts = slice.lists + static_cast<int64_t>(head) * slice.chunks + first_list;

  int32_t list[kThreadChoices], place[kThreadChoices] = {};
#pragma unroll
  for (int k = 0; k < kThreadChoices; ++k) {
    const int32_t i = first + k * kListThreads + thread;
    const uint32_t row = static_cast<uint32_t>(i) / top, slot = static_cast<uint32_t>(i) % top;
    const int64_t row_and_head = static_cast<int64_t>(row) * a.heads + slice.first_head + head;
    list[k] = i < end ? a.chosen[row_and_head * a.stride + slot] : -1;
  }
#pragma unroll
  for (int k = 0; k < kThreadChoices; ++k) {
    s = piece_of(min(first + k * kListThreads + thread, end - 1), s);
    if (pieces.of[s].dense != 0) list[k] = -1;
    if (list[k] >= 0) list[k] += pieces.of[s].lists - first_list;
  }

  if (lists <= kBlockLists) {
    for (int32_t i = thread; i < lists; i += kListThreads) counts[i] = 0;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kThreadChoices; ++k) {
      if (list[k] >= 0) place[k] = atomicAdd(counts + list[k], 1);
    }
    __syncthreads();
    for (int32_t i = thread; i < lists; i += kListThreads) {
      if (counts[i] == 0) continue;
      const int32_t before = atomicAdd(all_counts + i, counts[i]);
      if constexpr (kWrite) counts[i] = before;
    }
    if constexpr (kWrite) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kThreadChoices; ++k) {
        if (list[k] >= 0) place[k] += counts[list[k]];
      }
    }
  } else {
#pragma unroll
    for (int k = 0; k < kThreadChoices; ++k) {
      if (list[k] >= 0) place[k] = atomicAdd(all_counts + list[k], 1);
    }
  }
  if constexpr (kWrite) {
#pragma unroll
    for (int k = 0; k < kThreadChoices; ++k) {
      if (list[k] >= 0) slice.entries[place[k]] = first + k * kListThreads + thread;
    }
  }
}

/// Cuts the lists into tiles of queries. A block for each head.
__global__ void __launch_bounds__(kPlanThreads) plan_kernel(Slice slice) {
  constexpr unsigned kWarps = kPlanThreads / 32;
  __shared__ int32_t warp_entries[kWarps], warp_tiles[kWarps];
  allow_next_kernel();
  wait_for_previous_kernel();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const auto head = static_cast<int32_t>(blockIdx.x);
  int32_t* const lists = slice.lists + static_cast<int64_t>(head) * slice.chunks;
  int4* const all_tiles = slice.tiles + static_cast<int64_t>(head) * slice.most_tiles;
  int32_t entries_before = head * slice.choices, tiles_before = 0;
  for (int32_t base = 0; base < slice.chunks; base += kPlanThreads) {
    const int32_t list = base + static_cast<int32_t>(threadIdx.x);
    const int32_t count = list < slice.chunks ? lists[list] : 0;
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
    int32_t first_entry = entries_before + entry_sum - count, first_tile = tiles_before + tile_sum - tiles;
    for (unsigned w = 0; w < kWarps; ++w) {
      if (w < warp) {
        first_entry += warp_entries[w];
        first_tile += warp_tiles[w];
      }
      entries_before += warp_entries[w];
      tiles_before += warp_tiles[w];
    }
    if (list < slice.chunks) lists[list] = first_entry;
    // Lists differ in length, so the warp writes one's tiles after another's.
    for (unsigned left = __ballot_sync(kAllLanes, tiles > 0); left != 0; left &= left - 1) {
      const int source = __ffs(static_cast<int>(left)) - 1;
      const int32_t of = __shfl_sync(kAllLanes, list, source), n = __shfl_sync(kAllLanes, count, source);
      const int32_t from = __shfl_sync(kAllLanes, first_entry, source);
      int4* const to = all_tiles + __shfl_sync(kAllLanes, first_tile, source);
      for (auto t = static_cast<int32_t>(lane); t * kQueries < n; t += 32) {
        to[t] = make_int4(of, from + t * kQueries, min(kQueries, n - t * kQueries), 0);
      }
    }
  }
  if (threadIdx.x == 0) slice.tile_counts[head] = tiles_before;
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
  const auto block = static_cast<int32_t>(blockIdx.x);
  const int32_t head = block / slice.most_tiles;
  const int4 tile = slice.tiles[block];
  if (block % slice.most_tiles >= slice.tile_counts[head]) return;
  auto* const shared = Way::shared();
  const int32_t chunk_of_all = tile.x;
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

/// Kept at a time: 1.1 GB, or a 64th of a small memory. More heads at a time have fewer ends at which a part
/// of the multiprocessors has nothing to do.
constexpr int64_t kMostParts = int64_t{1} << 22;
int64_t most_parts(const Gpu& gpu) {
  return std::min<int64_t>(kMostParts, gpu.memory_bytes() / 64 / static_cast<int64_t>(kHead * sizeof(float)));
}

template <typename Way>
void attend(Gpu& gpu, Pieces& pieces, const Attend& a, DType kv) {
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
  if (sparse) {
    const int64_t most = std::clamp<int64_t>(most_parts(gpu) / (rows * a.top), 1, a.heads);
    const int64_t slices = (a.heads + most - 1) / most;
    heads = (a.heads + slices - 1) / slices;
  }

  const Arena::Scope scope(gpu.scratch());
  Staging staging(gpu, pieces, heads, kv);
  heads = staging.heads();
  Slice slice{};
  slice.chunks = lists;
  int32_t* counts = nullptr;  // [H, lists]
  if (sparse) {
    Arena& arena = gpu.scratch();
    const auto ints = [&](int64_t n) { return arena.take(DType::i32, {n}).as<int32_t>(); };
    const int64_t choices = rows * a.top, entries = heads * choices;
    slice.choices = static_cast<int32_t>(choices);
    slice.most_tiles = static_cast<int32_t>(choices / kQueries + std::min<int64_t>(lists, choices));
    counts = ints(int64_t{a.heads} * lists);
    gpu.zero(counts, static_cast<size_t>(a.heads) * static_cast<size_t>(lists) * sizeof(int32_t));
    slice.entries = ints(entries);
    slice.tiles = reinterpret_cast<int4*>(ints(4 * heads * slice.most_tiles));
    slice.tile_counts = ints(heads);
    slice.parts = arena.take(DType::f32, {entries, kHead}).as<float>();
    slice.part_logs = arena.take(DType::f32, {entries}).as<float>();
  }
  for (int32_t first = 0; first < a.heads; first += slice.heads) {
    slice.first_head = first;
    slice.heads = static_cast<int32_t>(std::min<int64_t>(heads, a.heads - first));
    const Pieces near = staging.bring(first, slice.heads);
    if (sparse) {
      slice.lists = counts + static_cast<int64_t>(first) * lists;
      const Grid lists_grid{blocks_for(slice.choices, kBlockChoices) * static_cast<unsigned>(slice.heads),
                            kListThreads};
      launch(gpu, lists_grid, list_kernel<false>, pieces, a, slice);
      launch(gpu, {static_cast<unsigned>(slice.heads), kPlanThreads}, plan_kernel, slice);
      launch(gpu, lists_grid, list_kernel<true>, pieces, a, slice);
      launch(gpu, {static_cast<unsigned>(slice.heads * slice.most_tiles), flash::kThreads, Way::kSharedBytes},
             chosen_kernel<Way>, near, a, slice);
    }
    const Grid grid{static_cast<unsigned>(tiles * slice.heads), flash::kThreads, Way::kSharedBytes};
    if (a.y_bf16) {
      launch(gpu, grid, own_kernel<Way, Bf16>, near, a, slice, tiles);
    } else {
      launch(gpu, grid, own_kernel<Way, float>, near, a, slice, tiles);
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
  if (kv == DType::i8) return attend<AnyGpu<int8_t>>(gpu, pieces, a, kv);
  if (kHopperWay && kHasWgmma && gpu.capability() == 90 && whole_steps(pieces)) {
    return attend<HopperGpu>(gpu, pieces, a, kv);
  }
  attend<AnyGpu<Bf16>>(gpu, pieces, a, kv);
}

}  // namespace rwkvx::cuda
