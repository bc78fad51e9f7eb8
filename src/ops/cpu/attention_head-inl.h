/// One head of a task of attention: its queries, keys, values and sums of keys.
#if defined(RWKVX_OPS_CPU_ATTENTION_HEAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_ATTENTION_HEAD_INL_H_
#undef RWKVX_OPS_CPU_ATTENTION_HEAD_INL_H_
#else
#define RWKVX_OPS_CPU_ATTENTION_HEAD_INL_H_
#endif

#include <algorithm>

#include "ops/cpu/attention.h"
#include "ops/cpu/attention_tiles-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;
/// Fewer queries than this are attended one by one, with their channels in the lanes.
constexpr int64_t kFewQueries = kLanes == 16 ? 6 : 4;

/// Sums of a chunk that gates are computed from, and those of chunk `chunk`, [parts, N].
HWY_INLINE int64_t parts_of(const KvChunks& kv) { return kv.part > 0 ? kv.chunk_size / kv.part : 1; }
HWY_INLINE const float* sums_of(const KvChunks& kv, int64_t head, int64_t chunk) {
  const auto& all = kv.part > 0 ? kv.part_sums : kv.key_sums;
  return static_cast<const float*>(all[static_cast<size_t>(chunk)]) + head * parts_of(kv) * N;
}

/// What the parts of a task share.
struct Head {
  const KvChunks& kv;
  const float* q;  // the head's channels of row 0
  int64_t width, head, begin, end;
  int64_t first_position;    // of row `begin`
  int64_t chosen_chunks;     // top_k − 1
  const PackedSums* packed;  // for bounds of gates, or null
  const TileUnit* tiles;     // for many queries, or null

  const float* query(int64_t row) const { return q + row * width; }
  int64_t position(int64_t row) const { return first_position + row - begin; }
  int64_t chunk(int64_t row) const { return position(row) / kv.chunk_size; }
  template <typename T>
  Rows<T> keys(int64_t chunk) const {
    return rows<T>(kv.keys, kv.key_scales, chunk);
  }
  template <typename T>
  Rows<T> values(int64_t chunk) const {
    return rows<T>(kv.values, kv.value_scales, chunk);
  }
  template <typename T>
  Rows<T> rows(std::span<void* const> pages, std::span<float* const> scales, int64_t chunk) const {
    const auto c = static_cast<size_t>(chunk);
    const int64_t first = head * kv.chunk_size;
    return {static_cast<T*>(pages[c]) + first * N, Rows<T>::kScaled ? scales[c] + first : nullptr};
  }
  const float* sums(int64_t chunk) const { return sums_of(kv, head, chunk); }
  int64_t parts() const { return parts_of(kv); }
};

/// Values, summed with weights e^(score − highest) that sum to `total`, join a softmax.
HWY_INLINE void merge_softmax(Softmax& softmax, float highest, float total, const float* values) {
  const float most = std::max(softmax.highest, highest);
  const float scale = std::exp(softmax.highest - most), other_scale = std::exp(highest - most);
  softmax.highest = most;
  softmax.total = softmax.total * scale + total * other_scale;
  RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) {
    const V seen = hn::Mul(load(values + n), set(other_scale));
    store(hn::MulAdd(load(softmax.values + n), set(scale), seen), softmax.values + n);
  }
}

/// Queries row_of(0 .. lanes); lanes beyond repeat the last.
template <typename RowOf>
HWY_INLINE void load_queries(const Head& head, int64_t lanes, QueryBlock& block, const RowOf& row_of) {
  HWY_ALIGN float rows[kQueries * N];
  for (int64_t lane = 0; lane < kQueries; ++lane) {
    const float* q = head.query(row_of(std::min(lane, lanes - 1)));
    RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) {
      store(hn::Mul(load(q + n), set(0.125f)), rows + lane * N + n);  // 1/√N
    }
  }
  transpose(rows, N, kQueries, N, block.q, kQueries);
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
