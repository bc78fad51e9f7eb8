#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/kv_vote.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/attention_tiles-inl.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

template <typename T>
HWY_NOINLINE void vote_typed(const KvVote& call, int64_t head, Scratch& scratch) {
  const KvChunks& kv = call.kv;
  const int64_t width = call.q.dim(1), candidates = call.votes.dim(1);
  float* votes = call.votes.as<float>() + head * candidates;
  QueryBlock block;
  HWY_ALIGN float widened[kKeyBlock * N];
  for (int64_t row = 0; row < call.q.dim(0); row += kQueries) {
    const int64_t lanes = std::min(kQueries, call.q.dim(0) - row);
    for (int64_t lane = 0; lane < kQueries; ++lane) {
      const int64_t from = row + std::min(lane, lanes - 1);
      const float* q = call.q.as<float>() + from * width + head * N;
      for (int64_t n = 0; n < N; ++n) block.q[n * kQueries + lane] = q[n] * 0.125f;  // 1/√N
      block.positions[lane] =
          static_cast<float>(call.first + from * call.step);  // exact: stores stay below 2²⁴
    }
    const int64_t keys = call.first + (row + lanes - 1) * call.step + 1;
    float* scores = scratch.take<float>(keys * kQueries);
    V highest[kQueryVectors];
    RWKVX_UNROLL for (int v = 0; v < kQueryVectors; ++v) highest[v] = set(-1e30f);
    for (int64_t chunk = 0; chunk * kv.chunk_size < keys; ++chunk) {
      const auto c = static_cast<size_t>(chunk);
      const int64_t first = chunk * kv.chunk_size, in_page = head * kv.chunk_size;
      const Rows<T> rows{static_cast<T*>(kv.keys[c]) + in_page * N,
                         Rows<T>::kScaled ? kv.key_scales[c] + in_page : nullptr};
      const int64_t count = std::min(kv.chunk_size, keys - first);
      for (int64_t begin = 0; begin < count; begin += kKeyBlock) {
        const int64_t here = std::min(kKeyBlock, count - begin);
        score_keys<true>(block.q, block.positions, rows.from(begin).widened(here, widened), first + begin,
                         here, scores + (first + begin) * kQueries, highest);
      }
    }
    V total[kQueryVectors];
    RWKVX_UNROLL for (int v = 0; v < kQueryVectors; ++v) total[v] = zero();
    for (int64_t key = 0; key < keys; ++key) {
      RWKVX_UNROLL for (int v = 0; v < kQueryVectors; ++v) {
        float* score = scores + key * kQueries + v * kLanes;
        const V weight = exp(hn::Sub(load(score), highest[v]));
        total[v] = hn::Add(total[v], weight);
        store(weight, score);
      }
    }
    // Lanes that only repeat the last query have no vote.
    HWY_ALIGN float share[kQueries];
    RWKVX_UNROLL for (int v = 0; v < kQueryVectors; ++v) {
      store(hn::Div(set(1.0f), total[v]), share + v * kLanes);
    }
    std::fill(share + lanes, share + kQueries, 0.0f);
    for (int64_t key = 0; key < candidates; ++key) {
      V sum = zero();
      RWKVX_UNROLL for (int v = 0; v < kQueryVectors; ++v) {
        sum = hn::MulAdd(load(scores + key * kQueries + v * kLanes), load(share + v * kLanes), sum);
      }
      votes[key] += sum_of_lanes(sum);
    }
  }
}

void kv_vote_head(const KvVote& call, int64_t head, Scratch& scratch) {
  with_stored(call.kv.dtype, [&](auto stored) { vote_typed<const decltype(stored)>(call, head, scratch); });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(kv_vote_head);

void kv_vote_head(const KvVote& call, int64_t head, Scratch& scratch) {
  HWY_DYNAMIC_DISPATCH(kv_vote_head)(call, head, scratch);
}

}  // namespace rwkvx::cpu
#endif
