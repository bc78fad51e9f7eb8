#include <algorithm>
#include <vector>

#include "base/assert.h"
#include "ops/cuda/attention_backward_lists.h"
#include "ops/cuda/kernel.h"

namespace rwkvx::cuda {
namespace {

constexpr int kSegment = 1024;  // rows of a block, one for each thread

struct Selection {
  const ChunkRows* chunks;
  const int32_t* chosen;  // [R, H, stride]
  int64_t rows;
  int count, heads, slots, stride;
};

/// The first chunk of the sequence that a row is of.
__device__ __forceinline__ int first_chunk_of(const Selection& s, int64_t row) {
  int low = 0, high = s.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (s.chunks[middle].first_row <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low - s.chunks[low].index;
}

/// counts [H, segments, chunks · slots] += 1 for every choice.
__global__ void __launch_bounds__(kSegment) count_choices(Selection s, int* counts) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.y);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSegment + threadIdx.x;
  if (row >= s.rows) return;
  const int first = first_chunk_of(s, row), keys = s.count * s.slots;
  int* to = counts + (static_cast<int64_t>(head) * gridDim.x + blockIdx.x) * keys;
  const int32_t* from = s.chosen + (row * s.heads + head) * s.stride;
  for (int slot = 0; slot < s.slots; ++slot) {
    if (from[slot] >= 0) atomicAdd(to + (first + from[slot]) * s.slots + slot, 1);
  }
}

/// Of a block of kSegment threads; `sums` [32] in shared memory. The sum of all goes to `total`.
__device__ __forceinline__ int exclusive_scan(int x, int* sums, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  int sum = x;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(lanes));
    if (lane >= lanes) sum += other;
  }
  __syncthreads();
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int of_warps = sums[lane];
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int other = __shfl_up_sync(kAllLanes, of_warps, static_cast<unsigned>(lanes));
    if (lane >= lanes) of_warps += other;
  }
  total = __shfl_sync(kAllLanes, of_warps, 31);
  const int before = __shfl_sync(kAllLanes, of_warps, warp > 0 ? warp - 1 : 0);
  return sum - x + (warp > 0 ? before : 0);
}

/// One block for each head: counts become those of earlier segments.
__global__ void __launch_bounds__(kSegment)
    scan_choices(int chunks, int slots, int segments, int tile, int* counts, int* starts, int* tile_starts) {
  __shared__ int sums[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t head = blockIdx.x;
  const int keys = chunks * slots, thread = static_cast<int>(threadIdx.x);
  counts += head * segments * keys;
  starts += head * (keys + 1);
  tile_starts += head * slots * (chunks + 1);
  int before = 0;
  for (int first = 0; first < keys; first += kSegment) {
    const int key = first + thread;
    int mine = 0;
    for (int segment = 0; segment < segments && key < keys; ++segment) {
      int& count = counts[static_cast<int64_t>(segment) * keys + key];
      const int here = count;
      count = mine;
      mine += here;
    }
    int total;
    const int start = before + exclusive_scan(mine, sums, total);
    if (key < keys) starts[key] = start;
    before += total;
  }
  if (thread == 0) starts[keys] = before;
  __syncthreads();
  for (int slot = 0; slot < slots; ++slot) {
    before = 0;
    for (int first = 0; first < chunks; first += kSegment) {
      const int chunk = first + thread, key = chunk * slots + slot;
      const int tiles = chunk < chunks ? (starts[key + 1] - starts[key] + tile - 1) / tile : 0;
      int total;
      const int start = before + exclusive_scan(tiles, sums, total);
      if (chunk < chunks) tile_starts[slot * (chunks + 1) + chunk] = start;
      before += total;
    }
    if (thread == 0) tile_starts[slot * (chunks + 1) + chunks] = before;
  }
}

__global__ void __launch_bounds__(kSegment)
    scatter_choices(Selection s, const int* counts, const int* starts, int* lists) {
  __shared__ int4 segment_keys[kSegment / 4];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t head = blockIdx.y;
  const int thread = static_cast<int>(threadIdx.x), keys = s.count * s.slots;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kSegment + thread;
  counts += (head * gridDim.x + blockIdx.x) * keys;
  starts += head * (keys + 1);
  lists += head * s.rows * s.slots;
  const bool valid = row < s.rows;
  const int first = valid ? first_chunk_of(s, row) : 0;
  for (int slot = 0; slot < s.slots; ++slot) {
    const int chosen = valid ? s.chosen[(row * s.heads + head) * s.stride + slot] : -1;
    const int key = chosen >= 0 ? (first + chosen) * s.slots + slot : -1;
    __syncthreads();
    reinterpret_cast<int*>(segment_keys)[thread] = key;
    __syncthreads();
    int rank = 0;
    for (int i = 0; i < thread / 4; ++i) {
      const int4 others = segment_keys[i];
      rank += (others.x == key) + (others.y == key) + (others.z == key) + (others.w == key);
    }
    for (int i = thread / 4 * 4; i < thread; ++i)
      rank += reinterpret_cast<const int*>(segment_keys)[i] == key;
    if (key >= 0) lists[starts[key] + counts[key] + rank] = static_cast<int>(row);
  }
}

}  // namespace

ChunkTable upload_chunks(Gpu& gpu, const ChunkAttention& call) {
  ChunkTable table;
  table.rows = call.q.dim(0);
  table.heads = static_cast<int>(call.q.dim(1) / kHead);
  std::vector<ChunkRows> chunks;
  for (size_t s = 0; s + 1 < call.offsets.size(); ++s) {
    const KvChunks& kv = call.kv[s];
    const int64_t first = call.offsets[s], rows = call.offsets[s + 1] - first;
    RWKVX_ASSERT(kv.length == rows && kv.chunk_size == call.kv[0].chunk_size);
    table.chunk_size = static_cast<int>(kv.chunk_size);
    for (int64_t begin = 0; begin < rows; begin += kv.chunk_size) {
      const auto c = static_cast<size_t>(begin / kv.chunk_size);
      chunks.push_back({kv.keys[c], kv.values[c],
                        static_cast<const float*>(kv.key_sums.empty() ? nullptr : kv.key_sums[c]),
                        first + begin, static_cast<int>(std::min(kv.chunk_size, rows - begin)),
                        static_cast<int>(c)});
      table.most = std::max(table.most, static_cast<int>(c) + 1);
    }
  }
  table.count = static_cast<int>(chunks.size());
  table.chunks = gpu.table(std::span<const ChunkRows>(chunks));
  return table;
}

ChunkLists invert_selection(Gpu& gpu, const ChunkTable& table, ConstView chosen, int tile) {
  ChunkLists lists;
  const int64_t stride = chosen ? chosen.elements() / (table.rows * table.heads) : 0;
  lists.slots = static_cast<int>(std::min<int64_t>(stride, table.most - 1));  // the others hold −1
  if (lists.slots == 0) return lists;
  const int64_t slots = lists.slots, heads = table.heads, keys = table.count * slots;
  const int64_t segments = (table.rows + kSegment - 1) / kSegment;
  RWKVX_ASSERT(keys < INT32_MAX && table.rows * slots < INT32_MAX);
  const View counts = gpu.scratch().take(DType::i32, {heads, segments, keys});
  const View starts = gpu.scratch().take(DType::i32, {heads, keys + 1});
  const View tile_starts = gpu.scratch().take(DType::i32, {heads, slots, table.count + 1});
  const View rows = gpu.scratch().take(DType::i32, {heads, table.rows * slots});
  gpu.zero(counts.data(), counts.bytes());
  const Selection selection{table.chunks, chosen.as<int32_t>(),    table.rows, table.count, table.heads,
                            lists.slots,  static_cast<int>(stride)};
  const dim3 grid(static_cast<unsigned>(segments), static_cast<unsigned>(heads));
  launch(gpu, {grid, kSegment}, count_choices, selection, counts.as<int32_t>());
  launch(gpu, {static_cast<unsigned>(heads), kSegment}, scan_choices, table.count, lists.slots,
         static_cast<int>(segments), tile, counts.as<int32_t>(), starts.as<int32_t>(),
         tile_starts.as<int32_t>());
  launch(gpu, {grid, kSegment}, scatter_choices, selection, counts.as<int32_t>(), starts.as<int32_t>(),
         rows.as<int32_t>());
  lists.starts = starts.as<int32_t>();
  lists.rows = rows.as<int32_t>();
  lists.tile_starts = tile_starts.as<int32_t>();
  return lists;
}

}  // namespace rwkvx::cuda
