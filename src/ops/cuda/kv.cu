#include <algorithm>
#include <cstdint>

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/kv_parts.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowThreads = 16;  // of one head's row, four channels each
constexpr int kAppended = 64;    // sequences of one launch: a whole batch of decoding
constexpr int64_t kFewRows = 4;  // of a sequence: one launch, but row by row
constexpr int kSumThreads = 512;

/// Rows that become the last tokens of stores: of sequence s, rows offsets[s] .. offsets[s + 1].
struct Appending {
  int count = 0;
  int64_t offsets[kAppended + 1];
  int64_t chunks[kAppended + 1];  // written to in the sequences before
  Kv kv[kAppended];               // length: behind the new rows
};

/// The last s with bounds[s] ≤ x.
__device__ __forceinline__ int sequence_of(const int64_t* bounds, int count, int64_t x) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (bounds[middle] <= x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Stores a row's four channels x of this thread, of 16 that together hold the row, and gives them as stored.
/// `scales[slot]` is the row's scale. All threads of the warp must call it; where not valid, nothing is
/// stored.
__device__ __forceinline__ float4 put4(float* p, float*, int64_t, float4 x, bool valid) {
  if (valid) store4(p, x);
  return x;
}
__device__ __forceinline__ float4 put4(Bf16* p, float*, int64_t, float4 x, bool valid) {
  const uint2 pairs = make_uint2(pack_bf16(x.x, x.y), pack_bf16(x.z, x.w));
  if (valid) *reinterpret_cast<uint2*>(p) = pairs;
  return make_float4(low_bf16(pairs.x), high_bf16(pairs.x), low_bf16(pairs.y), high_bf16(pairs.y));
}
__device__ __forceinline__ float4 put4(int8_t* p, float* scales, int64_t slot, float4 x, bool valid) {
  // Sizes as integers: a NaN is larger than infinity and stays.
  const auto size = [](float value) { return __float_as_uint(value) & 0x7fffffffu; };
  uint32_t most = max(max(size(x.x), size(x.y)), max(size(x.z), size(x.w)));
#pragma unroll
  for (int lanes = kRowThreads / 2; lanes > 0; lanes /= 2) {
    most = max(most, __shfl_xor_sync(kAllLanes, most, lanes));
  }
  const bool finite = most < 0x7f800000u;
  const float highest = __uint_as_float(most);
  const float step = finite ? highest / 127.0f : __uint_as_float(0x7fc00000u);
  const float inverse = most > 0 ? 127.0f / highest : 0.0f;
  const auto rounded = [&](float value) {
    return finite ? static_cast<uint32_t>(static_cast<int>(rintf(value * inverse))) & 0xffu : 1u;
  };
  const uint32_t word = rounded(x.x) | rounded(x.y) << 8 | rounded(x.z) << 16 | rounded(x.w) << 24;
  if (valid) {
    *reinterpret_cast<uint32_t*>(p) = word;
    if (threadIdx.x % kRowThreads == 0) scales[slot] = step;
  }
  return stored4(reinterpret_cast<const int8_t*>(&word), step);
}

/// Puts one head of a row where it belongs; gives the key as stored.
template <typename T>
__device__ __forceinline__ float4 append(const float* k, const float* v, const Kv& kv, int64_t row, int heads,
                                         int head, int64_t position, bool valid) {
  const int channel = static_cast<int>(threadIdx.x) % kRowThreads * 4;
  const int64_t from = (row * heads + head) * kHead + channel;
  const Place place = place_of(kv, position);
  const KvPage page = kv.pages[place.chunk];
  const int64_t slot = head * kv.chunk_size + place.slot, at = slot * kHead + channel;
  const float4 key = load4(k + from), value = load4(v + from);
  put4(static_cast<T*>(page.values) + at, page.value_scales, slot, value, valid);
  return put4(static_cast<T*>(page.keys) + at, page.key_scales, slot, key, valid);
}

/// One row and head for each 16 threads; leaves the sums to key_sums_kernel.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    append_kernel(const float* k, const float* v, int heads, const __grid_constant__ Appending to) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t first = to.offsets[0];
  const auto items = static_cast<uint32_t>((to.offsets[to.count] - first) * heads);
  const uint32_t item = (blockIdx.x * kThreads + threadIdx.x) / kRowThreads;
  const bool valid = item < items;
  const uint32_t here = valid ? item : 0;
  const int64_t row = first + here / static_cast<uint32_t>(heads);
  const int s = sequence_of(to.offsets, to.count, row);
  append<T>(k, v, to.kv[s], row, heads, static_cast<int>(here % static_cast<uint32_t>(heads)),
            to.kv[s].length - to.offsets[s + 1] + row, valid);
}

__device__ __forceinline__ void add4(float* sum, bool from_zero, float4 x) {
  const float4 before = from_zero ? make_float4(0, 0, 0, 0) : load4(sum);
  store4(sum, make_float4(before.x + x.x, before.y + x.y, before.z + x.z, before.w + x.w));
}

/// One sequence and head for each 16 threads, row by row, with the sums. `rows`: of the longest.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    append_few_kernel(const float* k, const float* v, int heads, int rows,
                      const __grid_constant__ Appending to) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int item = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / kRowThreads;
  const bool any = item < to.count * heads;
  const int s = any ? item / heads : 0, head = any ? item % heads : 0;
  const Kv& kv = to.kv[s];
  const int64_t begin = to.offsets[s], end = to.offsets[s + 1];
  const int channel = static_cast<int>(threadIdx.x) % kRowThreads * 4;
  for (int i = 0; i < rows; ++i) {
    const bool valid = any && begin + i < end;
    const int64_t row = begin + i < end ? begin + i : begin;
    const int64_t position = kv.length - end + row;
    const float4 key = append<T>(k, v, kv, row, heads, head, position, valid);
    if (!valid) continue;
    const Place place = place_of(kv, position);
    const KvPage page = kv.pages[place.chunk];
    const uint32_t slot = place.slot, part = static_cast<uint32_t>(kv.part);
    add4(static_cast<float*>(page.key_sums) + head * kHead + channel, slot == 0, key);
    if (part == 0) continue;
    const int64_t sum = head * (static_cast<uint32_t>(kv.chunk_size) / part) + slot / part;
    add4(static_cast<float*>(page.part_sums) + sum * kHead + channel, slot % part == 0, key);
  }
}

/// Adds the appended keys to the sums: one block for each chunk with new rows and each head. A warp takes
/// pieces of the chunk, which are its parts where there are parts.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    key_sums_kernel(int heads, const __grid_constant__ Appending to) {
  constexpr int kWarps = kSumThreads / 32;
  __shared__ float2 totals[kWarps][kHead / 2];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t item = to.chunks[0] + blockIdx.x / static_cast<unsigned>(heads);
  const int64_t head = blockIdx.x % static_cast<unsigned>(heads);
  const int s = sequence_of(to.chunks, to.count, item);
  const Kv& kv = to.kv[s];
  const auto size = static_cast<int>(kv.chunk_size);
  const int64_t first = kv.length - (to.offsets[s + 1] - to.offsets[s]);
  const int64_t chunk = first / size + (item - to.chunks[s]), start = chunk * size;
  const auto begin = static_cast<int>(max(first - start, int64_t{0}));
  const auto end = static_cast<int>(min(kv.length - start, int64_t{size}));
  const KvPage page = kv.pages[chunk];
  const T* keys = static_cast<const T*>(page.keys) + head * size * kHead;

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int piece = kv.part > 0 ? static_cast<int>(kv.part) : (size + kWarps - 1) / kWarps;
  float2 total = make_float2(0, 0);
  for (int p = begin / piece + warp; p * piece < end; p += kWarps) {
    const int from = max(begin, p * piece), until = min(end, (p + 1) * piece);
    float2 sum = make_float2(0, 0);
#pragma unroll 16
    for (int i = from; i < until; ++i) {
      const float2 key = stored2(keys + static_cast<int64_t>(i) * kHead + 2 * lane,
                                 sizeof(T) == 1 ? page.key_scales[head * size + i] : 1.0f);
      sum.x += key.x;
      sum.y += key.y;
    }
    total.x += sum.x;
    total.y += sum.y;
    if (kv.part == 0) continue;
    auto* at =
        reinterpret_cast<float2*>(static_cast<float*>(page.part_sums) + (head * (size / piece) + p) * kHead) +
        lane;
    if (from > p * piece) {
      const float2 before = *at;
      sum.x += before.x;
      sum.y += before.y;
    }
    *at = sum;
  }
  totals[warp][lane] = total;
  __syncthreads();
  if (warp > 0) return;
  auto* at = reinterpret_cast<float2*>(static_cast<float*>(page.key_sums) + head * kHead) + lane;
  float2 sum = begin > 0 ? *at : make_float2(0, 0);
  for (int w = 0; w < kWarps; ++w) {
    sum.x += totals[w][lane].x;
    sum.y += totals[w][lane].y;
  }
  *at = sum;
}

constexpr int kKeepThreads = 512, kKeepAtOnce = 4;

/// Moves rows of `Unit`s in place. Tokens go to where earlier ones were, so tiles of tokens follow one
/// another: a tile is read as a whole before it is written, and what a later tile reads lies behind it.
/// at(token): this thread's unit of it.
template <typename Unit, typename At>
__device__ __forceinline__ void keep_units(const int32_t* kept, int count, int thread, int threads,
                                           const At& at) {
  for (int start = 0; start < count; start += threads * kKeepAtOnce) {
    int from[kKeepAtOnce];
    Unit units[kKeepAtOnce];
    // Without branches, so that all are on their way together. Behind the end: anything.
#pragma unroll
    for (int i = 0; i < kKeepAtOnce; ++i) from[i] = kept[min(start + i * threads + thread, count - 1)];
#pragma unroll
    for (int i = 0; i < kKeepAtOnce; ++i) units[i] = *at(from[i]);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kKeepAtOnce; ++i) {
      const int token = start + i * threads + thread;
      if (token < count) *at(token) = units[i];
    }
  }
}

/// Block (slice, head, keys or values): 32 bytes of each row; of i8 the last slice is the scales.
template <typename T>
__global__ void __launch_bounds__(kKeepThreads) keep_kernel(Kv kv, const int32_t* kept, int count) {
  constexpr int kSliceBytes = 32, kRowBytes = kHead * static_cast<int>(sizeof(T));
  allow_next_kernel();
  wait_for_previous_kernel();
  const int slice = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int64_t head = blockIdx.y;
  const bool keys = blockIdx.z == 0;
  const auto size = static_cast<int>(kv.chunk_size);
  kept += head * count;
  if (slice * kSliceBytes < kRowBytes) {
    const int byte = slice * kSliceBytes + thread % 2 * 16;
    keep_units<uint4>(kept, count, thread / 2, kKeepThreads / 2, [&](int token) {
      const KvPage& page = kv.pages[token / size];
      auto* rows = static_cast<unsigned char*>(keys ? page.keys : page.values);
      return reinterpret_cast<uint4*>(rows + (head * size + token % size) * kRowBytes + byte);
    });
  } else {
    keep_units<float>(kept, count, thread, kKeepThreads, [&](int token) {
      const KvPage& page = kv.pages[token / size];
      return (keys ? page.key_scales : page.value_scales) + head * size + token % size;
    });
  }
}

/// Of stores of one type.
void append_group(Gpu& gpu, ConstView k, ConstView v, const Appending& to, DType dtype, int64_t longest) {
  const int heads = static_cast<int>(k.dim(1) / kHead);
  const int64_t rows = to.offsets[to.count] - to.offsets[0];
  RWKVX_ASSERT(rows * heads <= INT32_MAX);
  with_stored(dtype, [&](auto stored) {
    using T = decltype(stored);
    if (longest <= kFewRows) {
      constexpr unsigned kFewThreads = 128;  // spread over more multiprocessors
      const unsigned blocks = blocks_for(int64_t{to.count} * heads * kRowThreads, kFewThreads);
      launch(gpu, {blocks, kFewThreads}, append_few_kernel<T>, k.as<float>(), v.as<float>(), heads,
             static_cast<int>(longest), to);
      return;
    }
    launch(gpu, {blocks_for(rows * heads * kRowThreads, kThreads), kThreads}, append_kernel<T>, k.as<float>(),
           v.as<float>(), heads, to);
    const auto chunks = static_cast<unsigned>(to.chunks[to.count] - to.chunks[0]);
    launch(gpu, {chunks * static_cast<unsigned>(heads), kSumThreads}, key_sums_kernel<T>, heads, to);
  });
}

}  // namespace

void kv_append(Gpu& gpu, ConstView k, ConstView v, std::span<const int64_t> offsets,
               std::span<const KvChunks> kv) {
  const size_t sequences = offsets.size() - 1;
  for (size_t first = 0; first < sequences;) {
    Appending group;
    group.offsets[0] = offsets[first];
    group.chunks[0] = 0;
    const DType dtype = kv[first].dtype;
    int64_t longest = 0;
    for (; first < sequences && group.count < kAppended && kv[first].dtype == dtype; ++first) {
      const KvChunks& to = kv[first];
      const int64_t rows = offsets[first + 1] - offsets[first];
      const int64_t chunks = (to.length - 1) / to.chunk_size - (to.length - rows) / to.chunk_size + 1;
      longest = std::max(longest, rows);
      group.kv[group.count] = on_gpu(gpu, to);
      group.offsets[group.count + 1] = offsets[first + 1];
      group.chunks[group.count + 1] = group.chunks[group.count] + chunks;
      ++group.count;
    }
    append_group(gpu, k, v, group, dtype, longest);
  }
}

void kv_keep(Gpu& gpu, const KvChunks& kv, ConstView kept) {
  const int64_t heads = kept.dim(0), count = kept.dim(1);
  RWKVX_ASSERT(kv.length <= INT32_MAX);
  if (count == 0) return;
  Appending all;
  all.count = 1;
  all.offsets[0] = all.chunks[0] = 0;
  all.offsets[1] = count;
  all.chunks[1] = (count + kv.chunk_size - 1) / kv.chunk_size;
  all.kv[0] = on_gpu(gpu, kv);
  with_stored(kv.dtype, [&](auto stored) {
    using T = decltype(stored);
    const unsigned slices = kHead * sizeof(T) / 32 + (sizeof(T) == 1 ? 1 : 0);
    launch(gpu, {{slices, static_cast<unsigned>(heads), 2}, kKeepThreads}, keep_kernel<T>, all.kv[0],
           kept.as<int32_t>(), static_cast<int>(count));
    all.kv[0].length = count;
    launch(gpu, {static_cast<unsigned>(all.chunks[1] * heads), kSumThreads}, key_sums_kernel<T>,
           static_cast<int>(heads), all);
  });
}

}  // namespace rwkvx::cuda
