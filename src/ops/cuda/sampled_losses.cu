#include <algorithm>
#include <vector>

#include "base/assert.h"
#include "ops/cuda/attention_backward_lists.h"
#include "ops/cuda/attention_backward_tiles.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/types.h"

namespace rwkvx::cuda {
namespace {

constexpr float kScale = 0.125f;   // 1 / √N
constexpr float kLowest = -1e30f;  // finite: differences are numbers
constexpr int kSampleThreads = 128;

struct Sample {
  int64_t row;
  int position, first_chunk;  // in, and of its sequence
};
/// Successive samples of one sequence, at most kTileRows.
struct SampleGroup {
  int first, count, last_position, first_chunk;
};
struct Samples {
  ChunkTable table;
  const Sample* samples;  // [n]
  const SampleGroup* groups;
  const int64_t *mention_ends, *mention_rows;  // or null
  const float* q;                              // [R, C]
  int count, group_count;
  int64_t mentions;   // of all samples
  int piece, pieces;  // keys of a piece, pieces of the longest sequence up to its last sample

  __device__ __forceinline__ int64_t width() const { return static_cast<int64_t>(table.heads) * kHead; }
  __device__ __forceinline__ const float* query(int head, int sample) const {
    return q + samples[sample].row * width() + head * kHead;
  }
  template <typename Page>
  __device__ __forceinline__ const Page* key(int head, int first_chunk, int position) const {
    const ChunkRows& chunk = table.chunks[first_chunk + position / table.chunk_size];
    return static_cast<const Page*>(chunk.keys) +
           (static_cast<int64_t>(head) * table.chunk_size + position % table.chunk_size) * kHead;
  }
  __device__ __forceinline__ int64_t first_mention(int sample) const {
    return mention_ends == nullptr || sample == 0 ? 0 : mention_ends[sample - 1];
  }
  __device__ __forceinline__ int64_t end_of_mentions(int sample) const {
    return mention_ends == nullptr ? 0 : mention_ends[sample];
  }
  /// Of a mention, in its sequence.
  __device__ __forceinline__ int position_of(int64_t mention, int first_chunk) const {
    return static_cast<int>(mention_rows[mention] - table.chunks[first_chunk].first_row);
  }
  /// In what is [H, n, pieces].
  __device__ __forceinline__ int64_t at(int head, int sample) const {
    return (static_cast<int64_t>(head) * count + sample) * pieces;
  }
};

__device__ __forceinline__ void load_sampled(const Samples& s, const SampleGroup& group, int head, float* q,
                                             int* positions) {
  load_tile(q, [&](int i) { return i < group.count ? s.query(head, group.first + i) : nullptr; });
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTileRows) positions[i] = i < group.count ? s.samples[group.first + i].position : -1;
}

/// For each sample, head and piece of the keys up to the sample: the highest score and Σ e^(score − highest).
/// One block for each (group and piece, head).
template <typename Page>
__global__ void __launch_bounds__(kTileThreads) weigh_pieces(Samples s, float2* weights) {
  __shared__ float4 q4[kTileFloats / 4], keys4[kTileFloats / 4];
  __shared__ int positions[kTileRows];
  auto* const q = reinterpret_cast<float*>(q4);
  auto* const keys = reinterpret_cast<float*>(keys4);
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.y), piece = static_cast<int>(blockIdx.x) % s.pieces;
  const SampleGroup group = s.groups[static_cast<int>(blockIdx.x) / s.pieces];
  const int64_t begin = static_cast<int64_t>(piece) * s.piece;
  if (begin > group.last_position) return;
  const int end = static_cast<int>(min(begin + s.piece, static_cast<int64_t>(group.last_position) + 1));
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  load_sampled(s, group, head, q, positions);
  float highest[4], total[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    highest[i] = kLowest;
    total[i] = 0;
  }
  for (int first = static_cast<int>(begin); first < end; first += kTileRows) {
    __syncthreads();
    load_tile(keys, [&](int i) {
      return first + i < end ? s.key<Page>(head, group.first_chunk, first + i) : nullptr;
    });
    __syncthreads();
    float scores[4][4];
    multiply_rows(scores, q, keys);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int last = min(end - 1, positions[4 * y + i]);
      float most = highest[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        scores[i][j] *= kScale;
        if (first + x + 16 * j <= last) most = fmaxf(most, scores[i][j]);
      }
      total[i] *= expf(highest[i] - most);
      highest[i] = most;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (first + x + 16 * j <= last) total[i] += expf(scores[i][j] - most);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, highest[i], lanes);
      const float more = __shfl_xor_sync(kAllLanes, total[i], lanes), most = fmaxf(highest[i], other);
      total[i] = total[i] * expf(highest[i] - most) + more * expf(other - most);
      highest[i] = most;
    }
    if (x == 0 && 4 * y + i < group.count) {
      weights[s.at(head, group.first + 4 * y + i) + piece] = make_float2(highest[i], total[i]);
    }
  }
}

__device__ __forceinline__ float block_max(float x, float* scratch) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  x = warp_max(x);
  __syncthreads();
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  return warp_max(lane < warps ? scratch[lane] : scratch[0]);
}

/// Of a block, the index of the largest value; of equal ones the lowest. `values` [32], `indices` [32] in
/// shared memory.
__device__ __forceinline__ int block_argmax(float value, int index, float* values, int* indices) {
  const auto reduce = [&] {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, value, lanes);
      const int other_index = __shfl_xor_sync(kAllLanes, index, lanes);
      if (other > value || (other == value && other_index < index)) {
        value = other;
        index = other_index;
      }
    }
  };
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  reduce();
  __syncthreads();
  if (lane == 0) {
    values[warp] = value;
    indices[warp] = index;
  }
  __syncthreads();
  value = values[lane < warps ? lane : 0];
  index = indices[lane < warps ? lane : 0];
  reduce();
  return index;
}

/// scores [mentions] of a sample's mentions, as weigh_pieces() computes them in every bit; returns the
/// highest.
template <typename Page>
__device__ __forceinline__ float score_mentions(const Samples& s, int head, int sample, float* scores,
                                                float* scratch) {
  const float* q = s.query(head, sample);
  const int first_chunk = s.samples[sample].first_chunk;
  float best = kLowest;
  for (int64_t m = s.first_mention(sample) + threadIdx.x; m < s.end_of_mentions(sample);
       m += kSampleThreads) {
    const Page* key = s.key<Page>(head, first_chunk, s.position_of(m, first_chunk));
    float sum = 0;
    for (int n = 0; n < kHead; n += 4) {
      const float4 a = load4(q + n), b = load4(key + n);
      sum = fmaf(a.x, b.x, sum);
      sum = fmaf(a.y, b.y, sum);
      sum = fmaf(a.z, b.z, sum);
      sum = fmaf(a.w, b.w, sum);
    }
    scores[m] = sum * kScale;
    best = fmaxf(best, sum * kScale);
  }
  return block_max(best, scratch);
}

/// From the pieces' weights, which are chunks', to losses, dq and the gates' gradients [H, n, chunks]. One
/// block for each (sample, head).
template <typename Page>
__global__ void __launch_bounds__(kSampleThreads)
    compare_gates(Samples s, float scale, float2* weights, float* mention_scores, float* losses, float* hits,
                  float* dq) {
  __shared__ float scratch[32], sums[kSampleThreads];
  __shared__ int indices[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int sample = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, B = s.table.chunk_size;
  const Sample one = s.samples[sample];
  const int own = one.position / B;
  const int64_t result = static_cast<int64_t>(sample) * s.table.heads + head;
  if (own == 0) {
    if (thread == 0) {
      losses[result] = 0;
      hits[result] = -1;
    }
    return;
  }
  const ChunkRows* chunks = s.table.chunks + one.first_chunk;
  float2* at = weights + s.at(head, sample);
  const float* q = s.query(head, sample);

  // Masses, in at[j].y.
  const int64_t first_mention = s.first_mention(sample), end = s.end_of_mentions(sample);
  if (first_mention < end) {
    float* scores = mention_scores + head * s.mentions;
    const float best = score_mentions<Page>(s, head, sample, scores, scratch);
    __syncthreads();
    for (int j = thread; j <= own; j += kSampleThreads) {
      float mass = 0;
      for (int64_t m = first_mention; m < end; ++m) {
        if (s.position_of(m, one.first_chunk) / B == j) mass += expf(scores[m] - best);
      }
      at[j] = make_float2(best, mass);
    }
  }
  float highest = kLowest;
  for (int j = thread; j <= own; j += kSampleThreads) highest = fmaxf(highest, at[j].x);
  highest = block_max(highest, scratch);
  float total = 0;
  for (int j = thread; j <= own; j += kSampleThreads) {
    const float mass = at[j].y * expf(at[j].x - highest);
    at[j].y = mass;
    total += mass;
  }
  const float inverse = 1 / block_sum(total, scratch);
  __syncthreads();

  // Gates, in at[j].x.
  const float2 query = reinterpret_cast<const float2*>(q)[lane];
  for (int j = thread / 32; j < own; j += kSampleThreads / 32) {
    const float2 sum = reinterpret_cast<const float2*>(chunks[j].key_sums + head * kHead)[lane];
    const float gate = warp_sum(query.x * sum.x + query.y * sum.y);
    if (lane == 0) at[j].x = gate / static_cast<float>(B);
  }
  __syncthreads();
  float best_gate = -INFINITY, best_mass = -INFINITY, outside = 0;
  int gate_index = INT32_MAX, mass_index = INT32_MAX;
  for (int j = thread; j < own; j += kSampleThreads) {
    const float2 here = make_float2(at[j].x, at[j].y * inverse);
    at[j].y = here.y;
    outside += here.y;
    if (here.x > best_gate) {
      best_gate = here.x;
      gate_index = j;
    }
    if (here.y > best_mass) {
      best_mass = here.y;
      mass_index = j;
    }
  }
  gate_index = block_argmax(best_gate, gate_index, scratch, indices);
  mass_index = block_argmax(best_mass, mass_index, scratch, indices);
  outside = block_sum(outside, scratch);
  best_gate = block_max(best_gate, scratch);
  float gate_total = 0;
  for (int j = thread; j < own; j += kSampleThreads) gate_total += expf(at[j].x - best_gate);
  const float log_total = logf(block_sum(gate_total, scratch));
  float loss = 0;
  for (int j = thread; j < own; j += kSampleThreads) {
    const float log_share = at[j].x - best_gate - log_total, mass = at[j].y;
    loss -= mass * log_share;
    at[j].x = scale * (outside * expf(log_share) - mass);
  }
  loss = block_sum(loss, scratch);
  __syncthreads();
  if (thread == 0) {
    losses[result] = loss;
    hits[result] = gate_index == mass_index ? 1.0f : 0.0f;
  }
  float sum = 0;
  const int channel = thread % kHead;
  for (int j = thread / kHead; j < own; j += kSampleThreads / kHead) {
    sum = fmaf(at[j].x, chunks[j].key_sums[head * kHead + channel], sum);
  }
  sums[thread] = sum;
  __syncthreads();
  if (thread < kHead) {
    dq[one.row * s.width() + head * kHead + thread] +=
        (sums[thread] + sums[thread + kHead]) / static_cast<float>(B);
  }
}

/// dk of a chunk's rows += what the gates say. One block for each (chunk, head).
__global__ void __launch_bounds__(kTileThreads)
    add_gate_gradients(Samples s, const float2* weights, float* dk) {
  constexpr int kParts = kTileThreads / kHead;
  __shared__ float sums[kTileThreads];
  __shared__ int any;
  allow_next_kernel();
  wait_for_previous_kernel();
  const int c = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), channel = thread % kHead, B = s.table.chunk_size;
  const ChunkRows chunk = s.table.chunks[c];
  if (thread == 0) any = 0;
  __syncthreads();
  float sum = 0;
  for (int sample = thread / kHead; sample < s.count; sample += kParts) {
    const Sample one = s.samples[sample];
    if (one.first_chunk != c - chunk.index || one.position / B <= chunk.index) continue;
    sum = fmaf(weights[s.at(head, sample) + chunk.index].x, s.query(head, sample)[channel], sum);
    any = 1;
  }
  sums[thread] = sum;
  __syncthreads();
  if (any == 0) return;
  sum = 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) sum += sums[part * kHead + channel];
  sum /= static_cast<float>(B);
  for (int row = thread / kHead; row < chunk.rows; row += kParts) {
    dk[(chunk.first_row + row) * s.width() + head * kHead + channel] += sum;
  }
}

/// What weighs the keys of a sample and head: e^(score − highest) · factor.
struct Pointing {
  float2* statistics;  // [H, n]: highest, factor
  float* shares;       // [H, mentions]: of each among the sample's mentions, times the gradient's scale
};

/// Losses, statistics and shares. One block for each (sample, head).
template <typename Page>
__global__ void __launch_bounds__(kSampleThreads)
    compare_mentions(Samples s, float scale, const float2* weights, Pointing pointing, float* losses,
                     float* hits) {
  __shared__ float scratch[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int sample = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t result = static_cast<int64_t>(sample) * s.table.heads + head;
  float2& statistics = pointing.statistics[static_cast<int64_t>(head) * s.count + sample];
  const int64_t first_mention = s.first_mention(sample), end = s.end_of_mentions(sample);
  if (first_mention == end) {
    if (thread == 0) {
      losses[result] = 0;
      hits[result] = -1;
      statistics = make_float2(INFINITY, 0);
    }
    return;
  }
  const float2* at = weights + s.at(head, sample);
  const int last = s.samples[sample].position / s.piece;
  float highest = kLowest, total = 0, some = 0;
  for (int i = thread; i <= last; i += kSampleThreads) highest = fmaxf(highest, at[i].x);
  highest = block_max(highest, scratch);
  for (int i = thread; i <= last; i += kSampleThreads) total += at[i].y * expf(at[i].x - highest);
  total = block_sum(total, scratch);
  float* shares = pointing.shares + head * s.mentions;
  const float best = score_mentions<Page>(s, head, sample, shares, scratch);
  for (int64_t m = first_mention + thread; m < end; m += kSampleThreads) some += expf(shares[m] - best);
  some = block_sum(some, scratch);
  for (int64_t m = first_mention + thread; m < end; m += kSampleThreads) {
    shares[m] = expf(shares[m] - best) / some * (scale * kScale);
  }
  if (thread == 0) {
    losses[result] = highest - best + logf(total) - logf(some);
    hits[result] = best >= highest ? 1.0f : 0.0f;
    statistics = make_float2(highest, scale * kScale / total);
  }
}

/// Shared memory of what follows.
struct PointingTiles {
  float *keys, *q, *gradients;
  int* positions;
  float2* statistics;
};
constexpr size_t kPointingBytes =
    3 * kTileFloats * sizeof(float) + kTileRows * (sizeof(int) + sizeof(float2));

__device__ __forceinline__ PointingTiles pointing_tiles() {
  auto* at = dynamic_shared<float>();
  auto* statistics = reinterpret_cast<float2*>(at + 3 * kTileFloats);
  return {at, at + kTileFloats, at + 2 * kTileFloats, reinterpret_cast<int*>(statistics + kTileRows),
          statistics};
}

__device__ __forceinline__ void load_pointing(const Samples& s, const Pointing& pointing,
                                              const SampleGroup& group, int head,
                                              const PointingTiles& tiles) {
  load_sampled(s, group, head, tiles.q, tiles.positions);
  const int i = static_cast<int>(threadIdx.x);
  if (i < kTileRows) {
    tiles.statistics[i] = i < group.count
                              ? pointing.statistics[static_cast<int64_t>(head) * s.count + group.first + i]
                              : make_float2(INFINITY, 0);
  }
}

/// Takes the mentions among keys first .. end off the tile of gradients, of [sample, key], or with
/// `key_rows` [key, sample]. One thread for each sample.
template <bool key_rows>
__device__ __forceinline__ void subtract_mentions(const Samples& s, const Pointing& pointing,
                                                  const SampleGroup& group, int head, int first, int end,
                                                  float* gradients) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= group.count) return;
  const int sample = group.first + i;
  for (int64_t m = s.first_mention(sample); m < s.end_of_mentions(sample); ++m) {
    const int position = s.position_of(m, group.first_chunk), key = position - first;
    if (position < first || position >= end) continue;
    gradients[key_rows ? key * kTileStride + i : i * kTileStride + key] -=
        pointing.shares[head * s.mentions + m];
  }
}

/// dk +=. One block for each (tile of 64 keys of a chunk, head).
template <typename Page>
__global__ void __launch_bounds__(kTileThreads) point_keys(Samples s, Pointing pointing, float* dk) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int of_chunk = (s.table.chunk_size + kTileRows - 1) / kTileRows, head = static_cast<int>(blockIdx.y);
  const int c = static_cast<int>(blockIdx.x) / of_chunk,
            in_chunk = static_cast<int>(blockIdx.x) % of_chunk * kTileRows;
  const ChunkRows chunk = s.table.chunks[c];
  const int keys = min(kTileRows, chunk.rows - in_chunk), first_chunk = c - chunk.index;
  const int first = chunk.index * s.table.chunk_size + in_chunk;  // position
  if (keys <= 0) return;
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const PointingTiles tiles = pointing_tiles();
  load_tile(tiles.keys,
            [&](int i) { return i < keys ? s.key<Page>(head, first_chunk, first + i) : nullptr; });
  float sums[4][4] = {};
  bool any = false;
  for (int g = 0; g < s.group_count; ++g) {
    const SampleGroup group = s.groups[g];
    if (group.first_chunk != first_chunk || group.last_position < first) continue;
    any = true;
    __syncthreads();
    load_pointing(s, pointing, group, head, tiles);
    __syncthreads();
    float gradients[4][4];
    multiply_rows(gradients, tiles.keys, tiles.q);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 statistics = tiles.statistics[x + 16 * j];
      const int position = tiles.positions[x + 16 * j];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool hidden = 4 * y + i >= keys || first + 4 * y + i > position;
        gradients[i][j] = hidden ? 0.0f : expf(gradients[i][j] * kScale - statistics.x) * statistics.y;
      }
    }
    store_tile(tiles.gradients, gradients);
    __syncthreads();
    subtract_mentions<true>(s, pointing, group, head, first, first + keys, tiles.gradients);
    __syncthreads();
    add_product(sums, tiles.gradients, tiles.q);
  }
  if (!any) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * y + i >= keys) break;
    float* to = dk + (chunk.first_row + in_chunk + 4 * y + i) * s.width() + head * kHead + 4 * x;
    const float4 before = load4(to);
    store4(to, make_float4(before.x + sums[i][0], before.y + sums[i][1], before.z + sums[i][2],
                           before.w + sums[i][3]));
  }
}

/// What each piece of keys adds to dq: parts [H, n, pieces, N]. One block for each (group and piece, head).
template <typename Page>
__global__ void __launch_bounds__(kTileThreads) point_queries(Samples s, Pointing pointing, float* parts) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int head = static_cast<int>(blockIdx.y), piece = static_cast<int>(blockIdx.x) % s.pieces;
  const SampleGroup group = s.groups[static_cast<int>(blockIdx.x) / s.pieces];
  const int64_t begin = static_cast<int64_t>(piece) * s.piece;
  if (begin > group.last_position) return;
  const int end = static_cast<int>(min(begin + s.piece, static_cast<int64_t>(group.last_position) + 1));
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const PointingTiles tiles = pointing_tiles();
  load_pointing(s, pointing, group, head, tiles);
  float sums[4][4] = {};
  for (int first = static_cast<int>(begin); first < end; first += kTileRows) {
    const int keys = min(kTileRows, end - first);
    __syncthreads();
    load_tile(tiles.keys,
              [&](int i) { return i < keys ? s.key<Page>(head, group.first_chunk, first + i) : nullptr; });
    __syncthreads();
    float gradients[4][4];
    multiply_rows(gradients, tiles.q, tiles.keys);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 statistics = tiles.statistics[4 * y + i];
      const int position = tiles.positions[4 * y + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const bool hidden = x + 16 * j >= keys || first + x + 16 * j > position;
        gradients[i][j] = hidden ? 0.0f : expf(gradients[i][j] * kScale - statistics.x) * statistics.y;
      }
    }
    store_tile(tiles.gradients, gradients);
    __syncthreads();
    subtract_mentions<false>(s, pointing, group, head, first, first + keys, tiles.gradients);
    __syncthreads();
    add_product(sums, tiles.gradients, tiles.keys);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (4 * y + i >= group.count) break;
    store4(parts + (s.at(head, group.first + 4 * y + i) + piece) * kHead + 4 * x,
           make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
  }
}

/// dq += the sum of the parts, in order. One block for each (sample, head).
__global__ void __launch_bounds__(kHead) add_parts(Samples s, const float* parts, float* dq) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int sample = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const Sample one = s.samples[sample];
  const int channel = static_cast<int>(threadIdx.x), last = one.position / s.piece;
  const float* from = parts + s.at(head, sample) * kHead + channel;
  float sum = 0;
  for (int i = 0; i <= last; ++i) sum += from[static_cast<int64_t>(i) * kHead];
  dq[one.row * s.width() + head * kHead + channel] += sum;
}

const int64_t* on_gpu(Gpu& gpu, std::span<const int64_t> numbers) {
  constexpr size_t kLargestTable = size_t{1} << 20;
  if (numbers.size_bytes() <= kLargestTable) return gpu.table(numbers);
  const View view = gpu.scratch().take(DType::i64, {static_cast<int64_t>(numbers.size())});
  gpu.upload(numbers.data(), view.data(), numbers.size_bytes());
  return view.as<int64_t>();
}

/// Without pieces.
Samples upload_samples(Gpu& gpu, const ChunkAttention& call, std::span<const int64_t> rows,
                       const Mentions* mentions, int64_t& longest) {
  Samples s{};
  s.table = upload_chunks(gpu, call);
  s.q = call.q.as<float>();
  s.count = static_cast<int>(rows.size());
  std::vector<Sample> samples;
  std::vector<SampleGroup> groups;
  size_t sequence = 0;
  int64_t first_chunk = 0;
  longest = 0;
  for (const int64_t row : rows) {
    bool begins = groups.empty() || groups.back().count == kTileRows;
    while (row >= call.offsets[sequence + 1]) {
      first_chunk += static_cast<int64_t>(call.kv[sequence].keys.size());
      ++sequence;
      begins = true;
    }
    const int64_t position = row - call.offsets[sequence];
    if (begins) groups.push_back({static_cast<int>(samples.size()), 0, 0, static_cast<int>(first_chunk)});
    ++groups.back().count;
    groups.back().last_position = static_cast<int>(position);
    samples.push_back({row, static_cast<int>(position), static_cast<int>(first_chunk)});
    longest = std::max(longest, position + 1);
  }
  s.group_count = static_cast<int>(groups.size());
  s.samples = gpu.table(std::span<const Sample>(samples));
  s.groups = gpu.table(std::span<const SampleGroup>(groups));
  if (mentions != nullptr) {
    s.mentions = static_cast<int64_t>(mentions->rows.size());
    s.mention_ends = on_gpu(gpu, mentions->ends);
    s.mention_rows = on_gpu(gpu, mentions->rows);
  }
  return s;
}

void set_pieces(Samples& s, int64_t piece, int64_t longest) {
  s.piece = static_cast<int>(piece);
  s.pieces = static_cast<int>((longest + piece - 1) / piece);
}

float2* take_pairs(Gpu& gpu, int64_t count) {
  return reinterpret_cast<float2*>(gpu.scratch().take(DType::f32, {count, 2}).as<float>());
}
float* take_floats(Gpu& gpu, int64_t count) {
  return gpu.scratch().take(DType::f32, {std::max<int64_t>(1, count)}).as<float>();
}

/// Calls with a Page*: what keys are stored in.
template <typename Call>
void with_pages(const ChunkAttention& call, const Call& each) {
  if (call.kv[0].dtype == DType::bf16) return each(static_cast<Bf16*>(nullptr));
  RWKVX_ASSERT(call.kv[0].dtype == DType::f32);
  each(static_cast<float*>(nullptr));
}

dim3 grid_of(int64_t items, int heads) {
  return {static_cast<unsigned>(items), static_cast<unsigned>(heads)};
}

}  // namespace

void gate_loss(Gpu& gpu, const ChunkAttention& forward, const GateLoss& loss) {
  if (loss.rows.empty()) return;
  const Arena::Scope scope(gpu.scratch());
  int64_t longest;
  Samples s = upload_samples(gpu, forward, loss.rows, loss.mentions ? &*loss.mentions : nullptr, longest);
  set_pieces(s, s.table.chunk_size, longest);
  const int heads = s.table.heads;
  float2* weights = take_pairs(gpu, static_cast<int64_t>(heads) * s.count * s.pieces);
  float* mention_scores = take_floats(gpu, heads * s.mentions);
  with_pages(forward, [&](auto* page) {
    using Page = std::remove_pointer_t<decltype(page)>;
    launch(gpu, {grid_of(static_cast<int64_t>(s.group_count) * s.pieces, heads), kTileThreads},
           weigh_pieces<Page>, s, weights);
    launch(gpu, {grid_of(s.count, heads), kSampleThreads}, compare_gates<Page>, s, loss.scale, weights,
           mention_scores, loss.losses.as<float>(), loss.hits.as<float>(), loss.dq.as<float>());
  });
  launch(gpu, {grid_of(s.table.count, heads), kTileThreads}, add_gate_gradients, s, weights,
         loss.dk.as<float>());
}

void pointing_loss(Gpu& gpu, const ChunkAttention& forward, const PointingLoss& loss) {
  if (loss.rows.empty()) return;
  constexpr int64_t kMostPieces = 32, kSmallestPiece = 1024;
  const Arena::Scope scope(gpu.scratch());
  int64_t longest;
  Samples s = upload_samples(gpu, forward, loss.rows, &loss.mentions, longest);
  const int64_t piece = std::max(kSmallestPiece, (longest + kMostPieces - 1) / kMostPieces);
  set_pieces(s, (piece + kTileRows - 1) / kTileRows * kTileRows, longest);
  const int heads = s.table.heads;
  const int64_t pairs = static_cast<int64_t>(heads) * s.count;
  float2* weights = take_pairs(gpu, pairs * s.pieces);
  const Pointing pointing{take_pairs(gpu, pairs), take_floats(gpu, heads * s.mentions)};
  float* parts = take_floats(gpu, pairs * s.pieces * kHead);
  const dim3 by_pieces = grid_of(static_cast<int64_t>(s.group_count) * s.pieces, heads);
  const int64_t key_tiles =
      static_cast<int64_t>(s.table.count) * ((s.table.chunk_size + kTileRows - 1) / kTileRows);
  with_pages(forward, [&](auto* page) {
    using Page = std::remove_pointer_t<decltype(page)>;
    launch(gpu, {by_pieces, kTileThreads}, weigh_pieces<Page>, s, weights);
    launch(gpu, {grid_of(s.count, heads), kSampleThreads}, compare_mentions<Page>, s, loss.scale, weights,
           pointing, loss.losses.as<float>(), loss.hits.as<float>());
    launch(gpu, {grid_of(key_tiles, heads), kTileThreads, kPointingBytes}, point_keys<Page>, s, pointing,
           loss.dk.as<float>());
    launch(gpu, {by_pieces, kTileThreads, kPointingBytes}, point_queries<Page>, s, pointing, parts);
  });
  launch(gpu, {grid_of(s.count, heads), kHead}, add_parts, s, parts, loss.dq.as<float>());
}

}  // namespace rwkvx::cuda
