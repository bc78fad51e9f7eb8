#include <algorithm>
#include <cstdint>

#include "ops/cuda/kv_parts.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;

// Votes: scores of 64 queries and 64 tokens at once by 256 threads, of which a thread has 4 × 4. Lanes of
// half a warp have the tokens, half warps the queries.
constexpr int kTile = 64, kPadded = kTile + 4;
constexpr int kVoteTokens = 512;   // of one block of the first pass
constexpr float kLowest = -1e30f;  // below all scores, and its differences are finite

struct Votes {
  const float* q;  // [rows, heads, N]
  Kv kv;
  int64_t first, step;  // query i is that of token first + i·step
  int rows, heads;
};

/// keys[n][i]: channel n of token start + i; zero from `end` on.
template <typename T>
__device__ __forceinline__ void load_keys(const Kv& kv, int64_t head, int64_t start, int64_t end,
                                          float (*keys)[kPadded]) {
  const int i = static_cast<int>(threadIdx.x) % kTile;
  const int channels = static_cast<int>(threadIdx.x) / kTile * 16;
  const int64_t token = start + i;
  const bool valid = token < end;
  const StoredKey<T> key = stored_key<T>(kv, head, valid ? token : 0);
#pragma unroll
  for (int n = channels; n < channels + 16; n += 4) {
    const float4 x = valid ? stored4(key.row + n, key.scale) : make_float4(0, 0, 0, 0);
    keys[n][i] = x.x;
    keys[n + 1][i] = x.y;
    keys[n + 2][i] = x.z;
    keys[n + 3][i] = x.w;
  }
}

/// queries[n][i]: channel n of query start + i, over √N; zero behind the last.
__device__ __forceinline__ void load_queries(const Votes& votes, int64_t head, int start,
                                             float (*queries)[kPadded]) {
  const int i = static_cast<int>(threadIdx.x) % kTile;
  const int channels = static_cast<int>(threadIdx.x) / kTile * 16;
  const bool valid = start + i < votes.rows;
  const float* row = votes.q + (static_cast<int64_t>(valid ? start + i : 0) * votes.heads + head) * kHead;
  constexpr float kScale = 0.125f;
#pragma unroll
  for (int n = channels; n < channels + 16; n += 4) {
    const float4 x = valid ? load4(row + n) : make_float4(0, 0, 0, 0);
    queries[n][i] = kScale * x.x;
    queries[n + 1][i] = kScale * x.y;
    queries[n + 2][i] = kScale * x.z;
    queries[n + 3][i] = kScale * x.w;
  }
}

/// scores[i][j]: of query 4·(threadIdx.x / 16) + i and token 4·(threadIdx.x % 16) + j of the tiles.
__device__ __forceinline__ void score(const float (*queries)[kPadded], const float (*keys)[kPadded],
                                      float (&scores)[4][4]) {
  const unsigned query = threadIdx.x / 16 * 4, token = threadIdx.x % 16 * 4;
#pragma unroll
  for (auto& row : scores) {
#pragma unroll
    for (float& x : row) x = 0;
  }
#pragma unroll 8
  for (int n = 0; n < kHead; ++n) {
    const float4 q = load4(&queries[n][query]), k = load4(&keys[n][token]);
    const float qs[4] = {q.x, q.y, q.z, q.w}, ks[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[i][j] = fmaf(qs[i], ks[j], scores[i][j]);
    }
  }
}

/// Block (tokens, head, queries): of each query the highest of its scores and Σ exp(score − highest).
/// parts [heads, rows, gridDim.x].
template <typename T>
__global__ void __launch_bounds__(kThreads) vote_sums_kernel(Votes votes, float2* parts) {
  alignas(16) __shared__ float queries[kHead][kPadded];
  alignas(16) __shared__ float keys[kHead][kPadded];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t head = blockIdx.y, begin = static_cast<int64_t>(blockIdx.x) * kVoteTokens;
  const int start = static_cast<int>(blockIdx.z) * kTile;
  const int query = start + static_cast<int>(threadIdx.x) / 16 * 4;
  // What the last query of the tile sees.
  const int64_t seen = votes.first + (min(start + kTile, votes.rows) - 1) * votes.step + 1;
  load_queries(votes, head, start, queries);
  float highest[4], sums[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    highest[i] = kLowest;
    sums[i] = 0;
  }
  for (int64_t at = begin; at < min(seen, begin + kVoteTokens); at += kTile) {
    __syncthreads();
    load_keys<T>(votes.kv, head, at, seen, keys);
    __syncthreads();
    float scores[4][4];
    score(queries, keys, scores);
    const int64_t token = at + threadIdx.x % 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t last = votes.first + (query + i) * votes.step;  // that the query sees
      float most = highest[i];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (token + j <= last) most = fmaxf(most, scores[i][j]);
      }
#pragma unroll
      for (int lanes = 8; lanes > 0; lanes /= 2) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, lanes));
      float sum = sums[i] * expf(highest[i] - most);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum += token + j <= last ? expf(scores[i][j] - most) : 0.0f;
      sums[i] = sum;
      highest[i] = most;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int lanes = 8; lanes > 0; lanes /= 2) sums[i] += __shfl_xor_sync(kAllLanes, sums[i], lanes);
    if (threadIdx.x % 16 == 0 && query + i < votes.rows) {
      parts[(head * votes.rows + query + i) * gridDim.x + blockIdx.x] = make_float2(highest[i], sums[i]);
    }
  }
}

/// A warp for each query and head: of all its tokens the highest score and 1 / Σ.
__global__ void __launch_bounds__(kThreads)
    merge_vote_sums_kernel(const float2* parts, int64_t queries, int count, float2* whole) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t query = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (query >= queries) return;
  float highest = kLowest, sum = 0;
  for (int i = lane; i < count; i += 32) highest = fmaxf(highest, parts[query * count + i].x);
  highest = warp_max(highest);
  for (int i = lane; i < count; i += 32) {
    const float2 part = parts[query * count + i];
    sum += part.y * expf(part.x - highest);
  }
  sum = warp_sum(sum);
  if (lane == 0) whole[query] = make_float2(highest, 1.0f / sum);
}

/// Block (candidates, head): the weights of all queries on them, in the order of the queries.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    vote_kernel(Votes votes, const float2* whole, int64_t candidates, float* to) {
  alignas(16) __shared__ float queries[kHead][kPadded];
  alignas(16) __shared__ float keys[kHead][kPadded];
  alignas(16) __shared__ float totals[kThreads / 16][kTile];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t head = blockIdx.y, begin = static_cast<int64_t>(blockIdx.x) * kTile;
  load_keys<T>(votes.kv, head, begin, candidates, keys);
  float total[4] = {0, 0, 0, 0};
  for (int start = 0; start < votes.rows; start += kTile) {
    __syncthreads();
    load_queries(votes, head, start, queries);
    __syncthreads();
    float scores[4][4];
    score(queries, keys, scores);
    const int query = start + static_cast<int>(threadIdx.x) / 16 * 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (query + i >= votes.rows) continue;
      const float2 of = whole[head * votes.rows + query + i];
#pragma unroll
      for (int j = 0; j < 4; ++j) total[j] += expf(scores[i][j] - of.x) * of.y;
    }
  }
  store4(&totals[threadIdx.x / 16][threadIdx.x % 16 * 4],
         make_float4(total[0], total[1], total[2], total[3]));
  __syncthreads();
  const int64_t token = begin + threadIdx.x;
  if (threadIdx.x >= kTile || token >= candidates) return;
  float sum = 0;
  for (const auto& row : totals) sum += row[threadIdx.x];
  to[head * candidates + token] += sum;
}

}  // namespace

void kv_vote(Gpu& gpu, const KvVote& call) {
  const int64_t rows = call.q.dim(0), heads = call.q.dim(1) / kHead, candidates = call.votes.dim(1);
  if (rows == 0 || candidates == 0) return;
  const Arena::Scope scope(gpu.scratch());
  const unsigned parts = blocks_for(call.seen(), kVoteTokens), all_heads = static_cast<unsigned>(heads);
  auto* sums = gpu.scratch().take(DType::f32, {heads, rows, int64_t{parts}, 2}).data();
  auto* whole = gpu.scratch().take(DType::f32, {heads, rows, 2}).data();
  const Votes votes{call.q.as<float>(), on_gpu(gpu, call.kv),   call.first,
                    call.step,          static_cast<int>(rows), static_cast<int>(heads)};
  with_stored(call.kv.dtype, [&](auto stored) {
    using T = decltype(stored);
    launch(gpu, {{parts, all_heads, blocks_for(rows, kTile)}, kThreads}, vote_sums_kernel<T>, votes,
           static_cast<float2*>(sums));
    launch(gpu, {blocks_for(heads * rows * 32, kThreads), kThreads}, merge_vote_sums_kernel,
           static_cast<const float2*>(sums), heads * rows, static_cast<int>(parts),
           static_cast<float2*>(whole));
    launch(gpu, {{blocks_for(candidates, kTile), all_heads}, kThreads}, vote_kernel<T>, votes,
           static_cast<const float2*>(whole), candidates, call.votes.as<float>());
  });
}

}  // namespace rwkvx::cuda
