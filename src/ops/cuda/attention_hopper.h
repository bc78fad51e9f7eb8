#pragma once

#include "ops/cuda/attention_flash.h"

/// A tile of queries against keys and values of bfloat16 with Hopper's products of a warpgroup, which run in
/// the background: a block is one warpgroup with two halves of 64 queries, and while the tensor cores work
/// on one half, softmax runs on the other (FlashAttention-3, arXiv 2407.08608).
namespace rwkvx::cuda::hopper {

using flash::kKeyBytes;
using flash::kKeys;
using flash::Rows;

inline constexpr int kStages = 4;
inline constexpr int kAhead = kStages - 1;  // steps whose keys and values are there or on their way
inline constexpr int kAlign = 1024;
inline constexpr int kSharedBytes = kAlign + flash::kQueryBytes + kStages * 2 * kKeyBytes;

/// The thread's four queries are rows 64 · (r / 2) + 16 · warp + 8 · (r mod 2) + lane / 4 of the tile.
__device__ __forceinline__ int32_t query_of(int r) {
  const auto thread = static_cast<int32_t>(threadIdx.x);
  return r / 2 * 64 + thread / 32 * 16 + r % 2 * 8 + thread % 32 / 4;
}

__device__ __forceinline__ void load_queries(uint32_t (&q)[2][4][4], const unsigned char* queries) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (unsigned m = 0; m < 2; ++m) {
#pragma unroll
    for (unsigned k = 0; k < 4; ++k) {
      ldmatrix_x4(q[m][k], queries + flash::swizzled(64 * m + 16 * warp + lane % 16, 2 * k + lane / 16));
    }
  }
}

/// Brings keys and values of tokens `begin` ≤ token < `end` into shared memory step by step, zeros from `end`
/// on. Chunks are whole steps, and `begin` a chunk's first token.
class Steps {
 public:
  __device__ __forceinline__ Steps(const Kv& kv, int32_t head, uint32_t begin, uint32_t end)
      : page_(kv.pages + begin / static_cast<uint32_t>(kv.chunk_size)),
        chunk_steps_(static_cast<uint32_t>(kv.chunk_size) / kKeys),
        offset_(head * kv.chunk_size * flash::kRowBytes + row() * flash::kRowBytes + piece() * 16),
        left_(end - begin) {}

  __device__ __forceinline__ uint32_t count() const { return (left_ + kKeys - 1) / kKeys; }

  /// The next step, while there are any. 128 threads.
  __device__ __forceinline__ void load(unsigned char* keys, unsigned char* values) {
    if (left_ == 0) return;
    if (steps_ == 0) {
      keys_ = static_cast<const unsigned char*>(page_->keys) + offset_;
      values_ = static_cast<const unsigned char*>(page_->values) + offset_;
      steps_ = chunk_steps_;
      ++page_;
    }
    const unsigned to = flash::swizzled(row(), piece());
    if (left_ >= kKeys) {
#pragma unroll
      for (unsigned i = 0; i < kKeyBytes; i += kPass) {
        copy_async_16(keys + to + i, keys_ + i);
        copy_async_16(values + to + i, values_ + i);
      }
      left_ -= kKeys;
    } else {
#pragma unroll
      for (unsigned i = 0; i < kKeyBytes; i += kPass) {
        const bool valid = row() + i / flash::kRowBytes < left_;
        copy_async_16(keys + to + i, keys_ + i, valid);
        copy_async_16(values + to + i, values_ + i, valid);
      }
      left_ = 0;
    }
    keys_ += kKeyBytes;
    values_ += kKeyBytes;
    --steps_;
  }

 private:
  static __device__ __forceinline__ unsigned row() { return threadIdx.x / 8; }
  static __device__ __forceinline__ unsigned piece() { return threadIdx.x % 8; }
  static constexpr unsigned kPass = 16 * flash::kRowBytes;  // bytes of rows that the threads copy at a time

  const KvPage* page_;  // of the next chunk
  uint32_t chunk_steps_;
  int64_t offset_;      // in a page, of what this thread copies first
  uint32_t left_;       // tokens
  uint32_t steps_ = 0;  // left in the chunk
  const unsigned char *keys_ = nullptr, *values_ = nullptr;
};

/// s = q · keysᵀ, begun.
__device__ __forceinline__ void begin_scores(float (&s)[8][4], const uint32_t (&q)[4][4], SharedMatrix keys) {
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma_bf16<false>(s, q[k], advance(keys, 32 * k), k > 0);
}
/// o += p · values, begun.
__device__ __forceinline__ void begin_output(float (&o)[8][4], const uint32_t (&p)[4][4],
                                             SharedMatrix values) {
#pragma unroll
  for (int k = 0; k < 4; ++k) wgmma_bf16<true>(o, p[k], advance(values, 16 * flash::kRowBytes * k), true);
}

/// From a half's scores to weights, as flash::attend(). visible(i, key) for i < 2: as there, asked only when
/// `masked`.
template <typename Visible>
__device__ __forceinline__ void weigh(float (&s)[8][4], float (&o)[8][4], float* highest, float* sum,
                                      uint32_t (&p)[4][4], bool masked, const Visible& visible) {
  if (masked) {
    const unsigned t = threadIdx.x % 4;
#pragma unroll
    for (unsigned n = 0; n < 8; ++n) {
#pragma unroll
      for (unsigned i = 0; i < 4; ++i) {
        if (!visible(i / 2, 8 * n + 2 * t + i % 2)) s[n][i] = -INFINITY;
      }
    }
  }
  float most[2];
#pragma unroll
  for (unsigned r = 0; r < 2; ++r) {
    float x[4];
#pragma unroll
    for (unsigned n = 0; n < 4; ++n) {
      x[n] = fmaxf(fmaxf(s[n][2 * r], s[n][2 * r + 1]), fmaxf(s[n + 4][2 * r], s[n + 4][2 * r + 1]));
    }
    const float mine = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
    const float two = fmaxf(mine, __shfl_xor_sync(kAllLanes, mine, 1));
    most[r] = fmaxf(two, __shfl_xor_sync(kAllLanes, two, 2)) * kScoreScale;
  }
  const bool raise = most[0] > highest[0] + flash::kSlack || most[1] > highest[1] + flash::kSlack;
  if (__any_sync(kAllLanes, raise)) {
#pragma unroll
    for (unsigned r = 0; r < 2; ++r) {
      const bool mine = most[r] > highest[r] + flash::kSlack;
      const float factor = mine ? exp2_fast(highest[r] - most[r]) : 1.0f;
      if (mine) highest[r] = most[r];
      sum[r] *= factor;
#pragma unroll
      for (unsigned n = 0; n < 8; ++n) {
        o[n][2 * r] *= factor;
        o[n][2 * r + 1] *= factor;
      }
    }
  }
  float base[2];  // a row that has seen nothing yet sees nothing here either
#pragma unroll
  for (unsigned r = 0; r < 2; ++r) base[r] = highest[r] == -INFINITY ? 0.0f : -highest[r];
#pragma unroll
  for (unsigned n = 0; n < 8; ++n) {
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) s[n][i] = exp2_fast(s[n][i] * kScoreScale + base[i / 2]);
    sum[0] += s[n][0] + s[n][1];
    sum[1] += s[n][2] + s[n][3];
    p[n / 2][n % 2 * 2] = pack_bf16(s[n][0], s[n][1]);
    p[n / 2][n % 2 * 2 + 1] = pack_bf16(s[n][2], s[n][3]);
  }
}

/// Adds all of `steps`, at least one. stage(): writes the queries, which are needed only when the first keys
/// are on their way. masked(m, first), visible(r, first, key): whether some query of half m does not see all
/// of the step of kKeys tokens from `first` on, and whether query r of the thread's four sees key of it.
template <typename Stage, typename Masked, typename Visible>
__device__ __forceinline__ void attend(Rows& rows, unsigned char* shared, Steps& loads, uint32_t begin,
                                       const Stage& stage, const Masked& masked, const Visible& visible) {
  const uint32_t steps = loads.count();
  const auto keys = [&](uint32_t t) { return shared + flash::kQueryBytes + t % kStages * (2 * kKeyBytes); };
  float s[2][8][4];
  uint32_t q[2][4][4], p[2][4][4];
  const auto weigh_half = [&](int m, uint32_t t) {
    const uint32_t first = begin + t * kKeys;
    weigh(s[m], rows.o[m], rows.highest + 2 * m, rows.sum + 2 * m, p[m], masked(m, first),
          [&](unsigned i, unsigned key) { return visible(2 * m + static_cast<int>(i), first, key); });
    pin(p[m]);
  };

  const auto begin_step = [&](int m, SharedMatrix values, SharedMatrix next) {
    wgmma_fence(s[m], rows.o[m], p[m]);
    begin_output(rows.o[m], p[m], values);
    begin_scores(s[m], q[m], next);
    wgmma_commit();
  };

#pragma unroll
  for (uint32_t t = 0; t < kAhead; ++t) {
    loads.load(keys(t), keys(t) + kKeyBytes);
    copy_async_commit();
  }
  stage();
  __syncthreads();
  load_queries(q, shared);
  copy_async_wait<kAhead - 1>();
  fence_shared_for_wgmma();
  __syncthreads();
  wgmma_fence(s[0], s[1]);
  begin_scores(s[0], q[0], rows_of_n(keys(0)));
  begin_scores(s[1], q[1], rows_of_n(keys(0)));
  wgmma_commit();
  wgmma_wait<0>(s[0], s[1]);
  weigh_half(0, 0);
  for (uint32_t t = 0; t + 1 < steps; ++t) {
    // Branches stand between softmax and the wait for the other half: the compiler would swap the two.
    wgmma_wait<0>(s[1], rows.o[1]);
    copy_async_wait<kAhead - 2>();
    fence_shared_for_wgmma();
    __syncthreads();  // step t + 1 is there, and all are done with step t − 1, whose place the load takes
    const SharedMatrix values = rows_of_k(keys(t) + kKeyBytes), next = rows_of_n(keys(t + 1));
    begin_step(0, values, next);
    weigh_half(1, t);
    loads.load(keys(t + kAhead), keys(t + kAhead) + kKeyBytes);
    copy_async_commit();
    wgmma_wait<0>(s[0], rows.o[0]);
    begin_step(1, values, next);
    weigh_half(0, t + 1);
  }
  wgmma_wait<0>(s[1], rows.o[1]);
  const SharedMatrix values = rows_of_k(keys(steps - 1) + kKeyBytes);
  wgmma_fence(rows.o[0], p[0]);
  begin_output(rows.o[0], p[0], values);
  wgmma_commit();
  weigh_half(1, steps - 1);
  wgmma_wait<0>(rows.o[0]);
  wgmma_fence(rows.o[1], p[1]);
  begin_output(rows.o[1], p[1], values);
  wgmma_commit();
  wgmma_wait<0>(rows.o[1]);
}

}  // namespace rwkvx::cuda::hopper
