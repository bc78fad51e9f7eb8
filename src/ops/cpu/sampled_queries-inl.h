/// Sampled queries of one head and the keys before them, for losses that look at full causal attention.
#if defined(RWKVX_OPS_CPU_SAMPLED_QUERIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_SAMPLED_QUERIES_INL_H_
#undef RWKVX_OPS_CPU_SAMPLED_QUERIES_INL_H_
#else
#define RWKVX_OPS_CPU_SAMPLED_QUERIES_INL_H_
#endif

#include <algorithm>

#include "ops/cpu/attention_tiles-inl.h"
#include "ops/training.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// One head of a sequence.
struct SampledHead {
  const KvChunks& kv;
  int64_t head, width, first;  // the sequence's first row
  const float* q;              // the head's channels of row 0

  SampledHead(const ChunkAttention& call, size_t sequence, int64_t h)
      : kv(call.kv[sequence]),
        head(h),
        width(call.q.dim(1)),
        first(call.offsets[sequence]),
        q(call.q.as<float>() + h * kHeadSize) {
    RWKVX_ASSERT(kv.length == call.offsets[sequence + 1] - first);
  }
  template <typename T>
  Rows<T> keys(int64_t chunk) const {
    return {static_cast<T*>(kv.keys[static_cast<size_t>(chunk)]) + head * kv.chunk_size * kHeadSize, nullptr};
  }
  const float* key_sums(int64_t chunk) const {
    return static_cast<const float*>(kv.key_sums[static_cast<size_t>(chunk)]) + head * kHeadSize;
  }
};

/// 2 vectors of queries. Those beyond the sampled ones repeat the last: what they give is not used.
struct SampledQueries {
  HWY_ALIGN float q[kQueries * kHeadSize];    // [query, n], scaled with 1/√N
  HWY_ALIGN float q_t[kHeadSize * kQueries];  // [n, query]
  HWY_ALIGN float positions[kQueries];
  int64_t queries;

  HWY_NOINLINE void load_rows(const SampledHead& head, std::span<const int64_t> rows) {
    queries = static_cast<int64_t>(rows.size());
    for (int64_t lane = 0; lane < kQueries; ++lane) {
      const int64_t row = rows[static_cast<size_t>(std::min(lane, queries - 1))];
      positions[lane] = static_cast<float>(row - head.first);
      for (int64_t n = 0; n < kHeadSize; n += kLanes) {
        store(hn::Mul(load(head.q + row * head.width + n), set(0.125f)), q + lane * kHeadSize + n);
      }
    }
    transpose(q, kHeadSize, kQueries, kHeadSize, q_t, kQueries);
  }
};

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
