#pragma once

#include "ops/cuda/attention_parts.h"

/// One tile of queries against keys and values of bfloat16, with tensor cores: scores stay in registers,
/// softmax runs along (FlashAttention-2, arXiv 2307.08691). The highest score by which a row's weights are
/// scaled is replaced only when a higher one is so by a factor of 2⁸; a row's result does not depend on its
/// neighbours.
namespace rwkvx::cuda::flash {

inline constexpr int kQueries = 128;  // of a tile, 32 for each warp
inline constexpr int kKeys = 64;      // of a step
inline constexpr int kThreads = 128;
inline constexpr int kStages = 3;
inline constexpr int kRowBytes = 128;
inline constexpr int kQueryBytes = kQueries * kRowBytes, kKeyBytes = kKeys * kRowBytes;
inline constexpr int kSharedBytes = kQueryBytes + kStages * 2 * kKeyBytes;
inline constexpr float kSlack = 8;  // in powers of two

/// 16 bytes of a row of 128, so that the same piece of eight rows lies in different banks.
__device__ __forceinline__ unsigned swizzled(unsigned row, unsigned piece) {
  return row * kRowBytes + ((piece ^ (row & 7u)) * 16);
}

/// Brings keys and values of consecutive tokens of a sequence into shared memory, zeros from `end` on.
template <typename T>
class KeyLoader;

template <>
class KeyLoader<Bf16> {
 public:
  __device__ __forceinline__ KeyLoader(const Kv& kv, uint32_t head, uint32_t end)
      : pages_(kv.pages), chunk_size_(static_cast<uint32_t>(kv.chunk_size)), head_(head), end_(end) {}

  /// The tile of kKeys tokens from `first`; pages_ is asked again only when the chunk changes.
  __device__ __forceinline__ void load(unsigned char* keys, unsigned char* values, uint32_t first) {
    const unsigned piece = threadIdx.x % 8, from = threadIdx.x / 8;
    if (chunk_size_ % kKeys == 0) {
      const uint32_t chunk = first / chunk_size_;
      if (chunk != chunk_) turn_to(chunk);
      const int64_t at =
          (static_cast<int64_t>(head_) * chunk_size_ + (first - chunk * chunk_size_)) * kRowBytes;
#pragma unroll
      for (unsigned i = 0; i < kKeys / 16; ++i) {
        const unsigned row = from + 16 * i;
        const bool valid = first + row < end_;
        const int64_t offset = at + (valid ? row : 0) * kRowBytes + piece * 16;
        copy_async_16(keys + swizzled(row, piece), keys_ + offset, valid);
        copy_async_16(values + swizzled(row, piece), values_ + offset, valid);
      }
      return;
    }
    for (unsigned i = 0; i < kKeys / 16; ++i) {
      const unsigned row = from + 16 * i;
      const bool valid = first + row < end_;
      const uint32_t token = valid ? first + row : first;
      const uint32_t chunk = token / chunk_size_;
      if (chunk != chunk_) turn_to(chunk);
      const int64_t offset =
          (static_cast<int64_t>(head_) * chunk_size_ + (token - chunk * chunk_size_)) * kRowBytes +
          piece * 16;
      copy_async_16(keys + swizzled(row, piece), keys_ + offset, valid);
      copy_async_16(values + swizzled(row, piece), values_ + offset, valid);
    }
  }

 private:
  __device__ __forceinline__ void turn_to(uint32_t chunk) {
    chunk_ = chunk;
    keys_ = static_cast<const unsigned char*>(pages_[chunk].keys);
    values_ = static_cast<const unsigned char*>(pages_[chunk].values);
  }

  const KvPage* pages_;
  const unsigned char *keys_ = nullptr, *values_ = nullptr;
  uint32_t chunk_size_, head_, end_, chunk_ = 0xffffffffu;
};

/// In 8 bits, of chunks of whole steps: what has arrived is then made bfloat16.
template <>
class KeyLoader<int8_t> {
 public:
  static constexpr int kValuesAt = kKeys * kHead, kScalesAt = 2 * kValuesAt;
  static constexpr int kStageBytes = kScalesAt + 2 * kKeys * static_cast<int>(sizeof(float));

  __device__ __forceinline__ KeyLoader(const Kv& kv, uint32_t head, uint32_t end)
      : pages_(kv.pages), chunk_size_(static_cast<uint32_t>(kv.chunk_size)), head_(head), end_(end) {}

  __device__ __forceinline__ void load(unsigned char* stage, uint32_t first) const {
    const uint32_t chunk = first / chunk_size_;
    const KvPage& page = pages_[chunk];
    const int64_t token = static_cast<int64_t>(head_) * chunk_size_ + (first - chunk * chunk_size_);
    const auto* const keys = static_cast<const unsigned char*>(page.keys) + token * kHead;
    const auto* const values = static_cast<const unsigned char*>(page.values) + token * kHead;
#pragma unroll
    for (unsigned i = 0; i < kKeys * kHead; i += 16 * kThreads) {
      const unsigned at = i + 16 * threadIdx.x;
      copy_async_16(stage + at, keys + at);
      copy_async_16(stage + kValuesAt + at, values + at);
    }
    if (threadIdx.x < kKeys / 2) {
      const unsigned at = threadIdx.x % (kKeys / 4) * 4;
      const bool of_keys = threadIdx.x < kKeys / 4;
      copy_async_16(stage + kScalesAt + 16 * threadIdx.x,
                    (of_keys ? page.key_scales : page.value_scales) + token + at);
    }
  }

  /// Half a row of keys and one of values for each thread.
  __device__ __forceinline__ void expand(const unsigned char* stage, uint32_t first, unsigned char* keys,
                                         unsigned char* values) const {
    const unsigned row = threadIdx.x / 2, half = threadIdx.x % 2;
    const auto* const scales = reinterpret_cast<const float*>(stage + kScalesAt);
    const bool valid = first + row < end_;
    expand_half(stage + row * kHead, valid ? scales[row] : 0.0f, row, half, keys);
    expand_half(stage + kValuesAt + row * kHead, valid ? scales[kKeys + row] : 0.0f, row, half, values);
  }

 private:
  static __device__ __forceinline__ void expand_half(const unsigned char* from, float scale, unsigned row,
                                                     unsigned half, unsigned char* to) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) {
      const uint2 bytes = *reinterpret_cast<const uint2*>(from + half * 32 + 8 * i);
      // A byte b + 128 in the last bits of 2²³ is 2²³ + b + 128.
      const uint32_t words[2] = {bytes.x ^ 0x80808080u, bytes.y ^ 0x80808080u};
      uint32_t pairs[4];
#pragma unroll
      for (unsigned j = 0; j < 4; ++j) {
        const uint32_t word = words[j / 2] >> (j % 2 * 16);
        const float low = __uint_as_float(0x4b000000u | (word & 0xffu)) - 8388736.0f;
        const float high = __uint_as_float(0x4b000000u | (word >> 8 & 0xffu)) - 8388736.0f;
        pairs[j] = pack_bf16(low * scale, high * scale);
      }
      *reinterpret_cast<uint4*>(to + swizzled(row, 4 * half + i)) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  const KvPage* pages_;
  uint32_t chunk_size_, head_, end_;
};
static_assert(2 * kKeyBytes + kStages * KeyLoader<int8_t>::kStageBytes <= kStages * 2 * kKeyBytes);

/// What a thread holds of its warp's 32 queries: rows 8 · r + lane / 4 for r < 4.
struct Rows {
  float o[2][8][4];  // [16 rows][8 channels] fragments
  float highest[4], sum[4];
};

/// The warp's queries as fragments, from shared memory.
__device__ __forceinline__ void load_queries(uint32_t (&q)[2][4][4], const unsigned char* queries) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
    for (unsigned k = 0; k < 4; ++k) {
      const unsigned row = warp * 32 + m * 16 + lane % 16;
      ldmatrix_x4(q[m][k], queries + swizzled(row, 2 * k + lane / 16));
    }
  }
}

/// Adds a step's keys and values. `visible(r, key)`: whether query r of the thread's four sees key 0 ≤ key <
/// kKeys; asked only when `masked`.
template <typename Visible>
__device__ __forceinline__ void attend(Rows& rows, const uint32_t (&q)[2][4][4], const unsigned char* keys,
                                       const unsigned char* values, bool masked, const Visible& visible) {
  const unsigned lane = threadIdx.x % 32;
  float s[2][8][4] = {};
#pragma unroll
  for (unsigned k = 0; k < 4; ++k) {
#pragma unroll
    for (unsigned n = 0; n < 4; ++n) {
      uint32_t two[4];
      ldmatrix_x4(two, keys + swizzled(16 * n + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      const uint32_t first[2] = {two[0], two[1]}, second[2] = {two[2], two[3]};
#pragma unroll
      for (unsigned m = 0; m < 2; ++m) {
        mma_bf16(s[m][2 * n], q[m][k], first);
        mma_bf16(s[m][2 * n + 1], q[m][k], second);
      }
    }
  }
  if (masked) {
#pragma unroll
    for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
      for (unsigned n = 0; n < 8; ++n) {
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
          if (!visible(2 * m + i / 2, 8 * n + 2 * (lane % 4) + i % 2)) s[m][n][i] = -INFINITY;
        }
      }
    }
  }

  float most[4];
#pragma unroll
  for (unsigned r = 0; r < 4; ++r) {
    const unsigned m = r / 2, i = r % 2 * 2;
    float x = fmaxf(s[m][0][i], s[m][0][i + 1]);
#pragma unroll
    for (unsigned n = 1; n < 8; ++n) x = fmaxf(x, fmaxf(s[m][n][i], s[m][n][i + 1]));
    x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
    most[r] = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2)) * kScoreScale;
  }
  bool raise = false;
#pragma unroll
  for (unsigned r = 0; r < 4; ++r) raise = raise || most[r] > rows.highest[r] + kSlack;
  if (__any_sync(kAllLanes, raise)) {
#pragma unroll
    for (unsigned r = 0; r < 4; ++r) {
      const bool mine = most[r] > rows.highest[r] + kSlack;
      const float factor = mine ? exp2_fast(rows.highest[r] - most[r]) : 1.0f;
      if (mine) rows.highest[r] = most[r];
      rows.sum[r] *= factor;
#pragma unroll
      for (unsigned n = 0; n < 8; ++n) {
        rows.o[r / 2][n][r % 2 * 2] *= factor;
        rows.o[r / 2][n][r % 2 * 2 + 1] *= factor;
      }
    }
  }

  float base[4];  // a row that has seen nothing yet sees nothing here either
#pragma unroll
  for (unsigned r = 0; r < 4; ++r) base[r] = rows.highest[r] == -INFINITY ? 0.0f : -rows.highest[r];
#pragma unroll
  for (unsigned k = 0; k < 4; ++k) {
    uint32_t p[2][4];
#pragma unroll
    for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
      for (unsigned half = 0; half < 2; ++half) {
        float(&x)[4] = s[m][2 * k + half];
#pragma unroll
        for (unsigned i = 0; i < 4; ++i) {
          x[i] = exp2_fast(x[i] * kScoreScale + base[2 * m + i / 2]);
        }
        rows.sum[2 * m] += x[0] + x[1];
        rows.sum[2 * m + 1] += x[2] + x[3];
        p[m][2 * half] = pack_bf16(x[0], x[1]);
        p[m][2 * half + 1] = pack_bf16(x[2], x[3]);
      }
    }
#pragma unroll
    for (unsigned n = 0; n < 4; ++n) {
      uint32_t two[4];
      ldmatrix_x4_trans(two, values + swizzled(16 * k + lane % 16, 2 * n + lane / 16));
      const uint32_t first[2] = {two[0], two[1]}, second[2] = {two[2], two[3]};
#pragma unroll
      for (unsigned m = 0; m < 2; ++m) {
        mma_bf16(rows.o[m][2 * n], p[m], first);
        mma_bf16(rows.o[m][2 * n + 1], p[m], second);
      }
    }
  }
}

/// From running sums to each row's mean of values and log2 Σ exp2(score).
__device__ __forceinline__ void finish(Rows& rows, float (&log_sum)[4]) {
#pragma unroll
  for (unsigned r = 0; r < 4; ++r) {
    float sum = rows.sum[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    log_sum[r] = rows.highest[r] + log2f(sum);
    const float inverse = 1.0f / sum;
#pragma unroll
    for (unsigned n = 0; n < 8; ++n) {
      rows.o[r / 2][n][r % 2 * 2] *= inverse;
      rows.o[r / 2][n][r % 2 * 2 + 1] *= inverse;
    }
  }
}

/// Queries rounded to bfloat16 into shared memory. row_of(i): the row of q for query i, or −1: zeros.
template <typename RowOf>
__device__ __forceinline__ void stage_queries(unsigned char* queries, const Attend& a, int32_t head,
                                              const RowOf& row_of) {
  const unsigned part = threadIdx.x % 16;
#pragma unroll 4
  for (unsigned i = threadIdx.x / 16; i < kQueries; i += kThreads / 16) {
    const int64_t row = row_of(static_cast<int32_t>(i));
    float4 v = make_float4(0, 0, 0, 0);
    if (row >= 0) v = load4(a.q + (row * a.heads + head) * kHead + 4 * part);
    *reinterpret_cast<uint2*>(queries + swizzled(i, part / 2) + part % 2 * 8) =
        make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
  }
}

/// Runs over the steps of tokens begin ≤ token < end; step(keys, values, first token) adds one.
template <typename Step>
__device__ __forceinline__ void over_keys(unsigned char* stages, KeyLoader<Bf16>& loader, uint32_t begin,
                                          uint32_t end, const Step& step) {
  const uint32_t steps = (end - begin + kKeys - 1) / kKeys;
  const auto keys = [&](uint32_t t) { return stages + t % kStages * (2 * kKeyBytes); };
#pragma unroll
  for (uint32_t t = 0; t + 1 < kStages; ++t) {
    if (t < steps) loader.load(keys(t), keys(t) + kKeyBytes, begin + t * kKeys);
    copy_async_commit();
  }
  for (uint32_t t = 0; t < steps; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this step is there, and the one whose place the next load takes is done with
    const uint32_t next = t + kStages - 1;
    if (next < steps) loader.load(keys(next), keys(next) + kKeyBytes, begin + next * kKeys);
    copy_async_commit();
    step(keys(t), keys(t) + kKeyBytes, begin + t * kKeys);
  }
}

template <typename Step>
__device__ __forceinline__ void over_keys(unsigned char* shared, KeyLoader<int8_t>& loader, uint32_t begin,
                                          uint32_t end, const Step& step) {
  const uint32_t steps = (end - begin + kKeys - 1) / kKeys;
  const auto stage = [&](uint32_t t) {
    return shared + 2 * kKeyBytes + t % kStages * KeyLoader<int8_t>::kStageBytes;
  };
#pragma unroll
  for (uint32_t t = 0; t + 1 < kStages; ++t) {
    if (t < steps) loader.load(stage(t), begin + t * kKeys);
    copy_async_commit();
  }
  for (uint32_t t = 0; t < steps; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // this step is there, and all are done with the one before
    const uint32_t next = t + kStages - 1;
    if (next < steps) loader.load(stage(next), begin + next * kKeys);
    copy_async_commit();
    loader.expand(stage(t), begin + t * kKeys, shared, shared + kKeyBytes);
    __syncthreads();
    step(shared, shared + kKeyBytes, begin + t * kKeys);
  }
}

}  // namespace rwkvx::cuda::flash
