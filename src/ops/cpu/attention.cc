// Chunks are chosen with the help of VNNI's sums of bytes.
#define HWY_WANT_AVX3_DL
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/attention.h"
#include "ops/cpu/attention_matrix-inl.h"
#include "ops/cpu/attention_tiles-inl.h"
#include "ops/cpu/chunk_choice-inl.h"
#include "ops/cpu/prefetch.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Of a row that is read a block later. What lies behind the last is fetched for nothing.
template <typename T>
HWY_INLINE void fetch_row(const T* row) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t n = 0; n < N; n += kLine) prefetch(row + n);
}

/// One query over keys 0 .. count of a page; its channels are in the lanes.
template <typename T>
HWY_NOINLINE void attend_one(const Head& head, int64_t row, const Rows<T>& keys, const Rows<T>& values,
                             int64_t count, Softmax& softmax) {
  constexpr int64_t kBlock = 64;
  HWY_ALIGN float scores[kBlock];
  V q[kHeadVectors], sums[kHeadVectors];
  RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
    q[n] = hn::Mul(load(head.query(row) + n * kLanes), set(0.125f));
    sums[n] = load(softmax.values + n * kLanes);
  }
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t block = std::min(kBlock, count - begin);
    for (int64_t i = 0; i < block; ++i) {
      const T* key = keys.row(begin + i);
      fetch_row(keys.row(begin + i + kBlock));
      V dot = hn::Mul(q[0], load(key));
      RWKVX_UNROLL for (int64_t n = 1; n < kHeadVectors; ++n) dot =
          hn::MulAdd(q[n], load(key + n * kLanes), dot);
      scores[i] = keys.scaled(sum_of_lanes(dot), begin + i);
    }
    std::fill(scores + block, scores + kBlock, -INFINITY);
    V most = load(scores);
    for (int64_t i = kLanes; i < kBlock; i += kLanes) most = hn::Max(most, load(scores + i));
    const float highest = std::max(softmax.highest, hn::GetLane(hn::MaxOfLanes(F(), most)));
    const float scale = hn::GetLane(exp(set(softmax.highest - highest)));
    softmax.highest = highest;
    V totals = zero();
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const V p = exp(hn::Sub(load(scores + i), set(highest)));
      totals = hn::Add(totals, p);
      store(p, scores + i);
    }
    softmax.total = softmax.total * scale + sum_of_lanes(totals);
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) sums[n] = hn::Mul(sums[n], set(scale));
    for (int64_t i = 0; i < block; ++i) {
      const T* value = values.row(begin + i);
      fetch_row(values.row(begin + i + kBlock));
      const V p = set(values.scaled(scores[i], begin + i));
      RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
        sums[n] = hn::MulAdd(p, load(value + n * kLanes), sums[n]);
      }
    }
  }
  RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) store(sums[n], softmax.values + n * kLanes);
}

/// Adds what a block's lanes have seen to their rows' softmaxes.
template <typename SoftmaxOf>
HWY_NOINLINE void merge(const QueryBlock& block, int64_t lanes, const SoftmaxOf& softmax_of) {
  HWY_ALIGN float values[kQueries * N];
  transpose(block.values, kQueries, N, kQueries, values, N);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    merge_softmax(softmax_of(lane), block.highest[lane], block.total[lane], values + lane * N);
  }
}

/// Chooses chunks for rows row .. row + lanes of one chunk, and, unless that is left to tiles, attends to
/// that chunk's earlier keys.
template <typename T>
HWY_NOINLINE void attend_own(const Head& head, int64_t row, int64_t lanes, bool tiles, QueryBlock& block,
                             Softmax* softmax, AttentionScratch& scratch, BoundsUse& use) {
  const int64_t own = head.chunk(row), slot = head.position(row) % head.kv.chunk_size;
  if (lanes >= kFewQueries) load_queries(head, lanes, block, [&](int64_t lane) { return row + lane; });
  choose(head, block, row, lanes, own, scratch, use);
  if (tiles) return;
  const auto keys = head.keys<T>(own), values = head.values<T>(own);
  if (lanes < kFewQueries) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      attend_one(head, row + lane, keys, values, slot + lane + 1, softmax[row - head.begin + lane]);
    }
    return;
  }
  for (int64_t lane = 0; lane < kQueries; ++lane) {
    block.positions[lane] = static_cast<float>(slot + std::min(lane, lanes - 1));
  }
  block.clear();
  attend_page<true, kQueryVectors>(block, keys, values, slot + lanes);
  merge(block, lanes, [&](int64_t lane) -> Softmax& { return softmax[row - head.begin + lane]; });
}

/// Attends rows to the chunks that they chose, chunk by chunk.
template <typename T>
HWY_NOINLINE void attend_chosen(const Head& head, QueryBlock& block, Softmax* softmax,
                                AttentionScratch& scratch) {
  const int64_t rows = head.end - head.begin, chunks = head.chunk(head.end - 1);
  if (chunks == 0 || head.chosen_chunks == 0) return;
  const auto* chosen = scratch.chosen.take<int32_t>(0);
  const int64_t all = rows * head.chosen_chunks;
  // Counting sort by chunk; afterwards counts[c] is the end of chunk c's requests.
  auto* counts = scratch.counts.take<int32_t>(chunks + 1);
  auto* requests = scratch.requests.take<int32_t>(all);
  std::fill(counts, counts + chunks + 1, 0);
  for (int64_t i = 0; i < all; ++i) ++counts[chosen[i] + 1];
  counts[0] = 0;  // the −1s
  for (int64_t c = 0; c < chunks; ++c) counts[c + 1] += counts[c];
  for (int64_t i = 0; i < all; ++i) {
    if (chosen[i] >= 0) requests[counts[chosen[i]]++] = static_cast<int32_t>(i / head.chosen_chunks);
  }
  int64_t begin = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    if (begin == counts[c]) continue;
    const auto keys = head.keys<T>(c), values = head.values<T>(c);
    if (head.kv.observer != nullptr) {
      const auto bytes = static_cast<uint64_t>(head.kv.chunk_size * N) * sizeof(T);
      for (const T* from : {keys.data, values.data}) head.kv.observer->read(from, bytes, counts[c] - begin);
    }
    if constexpr (kTilesTake<T>) {
      if (by_tiles<T>(head, counts[c] - begin)) {
        attend_chunk_tiles<T>(head, c, requests + begin, counts[c] - begin, *head.tiles, scratch, softmax);
        begin = counts[c];
      }
    }
    for (; begin < counts[c]; begin += kQueries) {
      const int64_t lanes = std::min<int64_t>(kQueries, counts[c] - begin);
      if (lanes < kFewQueries) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
          const int64_t row = requests[begin + lane];
          attend_one(head, head.begin + row, keys, values, head.kv.chunk_size, softmax[row]);
        }
        continue;
      }
      load_queries(head, lanes, block, [&](int64_t lane) { return head.begin + requests[begin + lane]; });
      block.clear();
      if (lanes <= kLanes) {
        attend_page<false, 1>(block, keys, values, head.kv.chunk_size);
      } else {
        attend_page<false, kQueryVectors>(block, keys, values, head.kv.chunk_size);
      }
      merge(block, lanes, [&](int64_t lane) -> Softmax& { return softmax[requests[begin + lane]]; });
    }
    begin = counts[c];
  }
}

void keep_for_backward(const Head& head, const ChunkAttention& call, const Softmax* softmax,
                       AttentionScratch& scratch) {
  const int64_t heads = head.width / N, slots = call.top_k - 1;
  const auto* chosen = scratch.chosen.take<int32_t>(0);
  for (int64_t row = head.begin; row < head.end; ++row) {
    const Softmax& s = softmax[row - head.begin];
    const int64_t at = row * heads + head.head;
    if (call.lse) call.lse.as<float>()[at] = s.highest + std::log(s.total);
    if (!call.chosen) continue;
    int32_t* to = call.chosen.as<int32_t>() + at * slots;
    std::fill(to, to + slots, -1);
    std::copy_n(chosen + (row - head.begin) * head.chosen_chunks, head.chosen_chunks, to);
  }
}

template <typename T>
HWY_NOINLINE void attend_typed(const Head& head, const AttentionTask& task, AttentionScratch& scratch) {
  const int64_t rows = head.end - head.begin;
  auto* softmax = scratch.softmax.take<Softmax>(rows);
  scratch.chosen.take<int32_t>(rows * head.chosen_chunks);
  for (int64_t row = 0; row < rows; ++row) {
    softmax[row].highest = -1e30f;
    softmax[row].total = 0;
    std::fill(std::begin(softmax[row].values), std::end(softmax[row].values), 0.0f);
  }
  QueryBlock block;
  BoundsUse use;
  for (int64_t row = head.begin; row < head.end;) {
    const int64_t left = head.kv.chunk_size - head.position(row) % head.kv.chunk_size;
    const int64_t first = row, last = std::min(head.end, row + left);  // of this chunk
    const bool tiles = by_tiles<T>(head, last - first);
    for (; row < last; row += kQueries) {
      attend_own<T>(head, row, std::min(kQueries, last - row), tiles, block, softmax, scratch, use);
    }
    row = last;
    if constexpr (kTilesTake<T>) {
      if (tiles) attend_own_tiles<T>(head, first, last, *head.tiles, scratch, softmax);
    }
  }
  attend_chosen<T>(head, block, softmax, scratch);
  keep_for_backward(head, *task.call, softmax, scratch);
  with_real_or_bf16(task.call->y.dtype(), task.call->y.data(), [&](auto* y) {
    for (int64_t row = 0; row < rows; ++row) {
      const V scale = set(1.0f / softmax[row].total);
      auto* to = y + (head.begin + row) * head.width + head.head * N;
      for (int64_t n = 0; n < N; n += kLanes) store(hn::Mul(load(softmax[row].values + n), scale), to + n);
    }
  });
}

void attend(const AttentionTask& task, AttentionScratch& scratch) {
  const ChunkAttention& call = *task.call;
  const KvChunks& kv = call.kv[task.sequence];
  const int64_t width = call.q.dim(1);
  Head head{kv,
            call.q.as<float>() + task.head * N,
            width,
            task.head,
            task.begin,
            task.end,
            kv.length - call.offsets[task.sequence + 1] + task.begin,
            0,
            task.packed,
            task.tiles};
  head.chosen_chunks = std::min(call.top_k - 1, head.chunk(task.end - 1));  // no more than there are
  with_stored(kv.dtype, [&](auto stored) { attend_typed<const decltype(stored)>(head, task, scratch); });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(attend);
HWY_EXPORT(pack_sums);

void attend(const AttentionTask& task, AttentionScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(attend)(task, scratch);
}

void pack_sums(const KvChunks& kv, int64_t head, int64_t chunks, PackedSums& packed) {
  HWY_DYNAMIC_DISPATCH(pack_sums)(kv, head, chunks, packed);
}

}  // namespace rwkvx::cpu
#endif
