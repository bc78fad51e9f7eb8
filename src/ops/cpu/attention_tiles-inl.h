/// Attention with the queries in the lanes: 2 vectors of queries against blocks of keys. Scores, softmax and
/// sums then never cross lanes, keys and values are read as stored, and any queries can share a vector.
#if defined(RWKVX_OPS_CPU_ATTENTION_TILES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_ATTENTION_TILES_INL_H_
#undef RWKVX_OPS_CPU_ATTENTION_TILES_INL_H_
#else
#define RWKVX_OPS_CPU_ATTENTION_TILES_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int kQueryVectors = 2;
constexpr int64_t kQueries = kQueryVectors * kLanes;
constexpr int kTile = kLanes == 16 ? 8 : 4;  // rows of a register tile; kTile · kQueryVectors accumulators
constexpr int64_t kKeyBlock = 32;            // keys, values, scores and queries fit the first-level cache
static_assert(kHeadSize % kTile == 0 && kKeyBlock % kTile == 0);

/// tile[i][v] += Σₖ row(i, k) · columns[k, v], k < count; columns are vectors, kStride numbers apart.
template <int64_t kStride = kQueries, int kVectors, typename Row>
HWY_INLINE void multiply_tile(V (&tile)[kTile][kVectors], const Row& row, const float* columns,
                              int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    V column[kVectors];
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      column[v] = hn::Load(F(), columns + k * kStride + v * kLanes);
    }
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      const V x = set(row(i, k));
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) tile[i][v] = hn::MulAdd(x, column[v], tile[i][v]);
    }
  }
}

/// to[i] += Σ over queries x[i, query] · columns[query, n], for i < count ≤ kTile; rows of `to` are `width`
/// apart.
HWY_INLINE void add_rows(const float* x, const float* columns, int64_t queries, int64_t count, float* to,
                         int64_t width) {
  constexpr int kV = 2;
  for (int64_t n = 0; n < kHeadSize; n += kV * kLanes) {
    V tile[kTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
    }
    multiply_tile<kHeadSize>(
        tile, [&](int i, int64_t query) { return x[i * kQueries + query]; }, columns + n, queries);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      if (i >= count) break;
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        float* at = to + i * width + n + v * kLanes;
        store(hn::Add(load(at), tile[i][v]), at);
      }
    }
  }
}

/// Rows [count, N] of a page as stored, T one of const float, const BFloat16 and const int8_t.
template <typename T>
struct Rows {
  T* data;
  const float* scales;  // int8_t only
  static constexpr bool kScaled = std::is_same_v<T, const int8_t>;

  HWY_INLINE T* row(int64_t i) const { return data + i * kHeadSize; }
  HWY_INLINE V scaled(V x, int64_t i) const {
    if constexpr (kScaled) return hn::Mul(x, set(scales[i]));
    return x;
  }
  HWY_INLINE float scaled(float x, int64_t i) const {
    if constexpr (kScaled) return x * scales[i];
    return x;
  }
  HWY_INLINE Rows from(int64_t i) const { return {row(i), kScaled ? scales + i : nullptr}; }
  /// The first `count` rows as float32: themselves, or written to `block`.
  HWY_INLINE const float* widened(int64_t count, float* block) const {
    if constexpr (std::is_same_v<T, const float>) {
      return data;
    } else {
      for (int64_t i = 0; i < count; ++i) {
        RWKVX_UNROLL for (int64_t n = 0; n < kHeadSize; n += kLanes) {
          store(scaled(load(row(i) + n), i), block + i * kHeadSize + n);
        }
      }
      return block;
    }
  }
};

/// 2 vectors of queries and their running softmaxes, transposed.
struct QueryBlock {
  HWY_ALIGN float q[kHeadSize * kQueries];       // [n, query], scaled with 1/√N
  HWY_ALIGN float values[kHeadSize * kQueries];  // [n, query]
  HWY_ALIGN float scores[kKeyBlock * kQueries];
  HWY_ALIGN float positions[kQueries];  // in the own chunk, for the causal mask
  HWY_ALIGN float highest[kQueries], total[kQueries];

  void clear() {
    std::fill(std::begin(values), std::end(values), 0.0f);
    std::fill(std::begin(total), std::end(total), 0.0f);
    std::fill(std::begin(highest), std::end(highest), -1e30f);  // finite: the first difference is a number
  }
};

/// Scores [key, query] of `count` ≤ kKeyBlock keys, float32 [count, N], the first at position `first`, with
/// kV vectors of queries q [N, query]; −∞ for keys behind the query's position, with kCausal. highest becomes
/// the largest of what it was and the scores.
template <bool kCausal, int kV>
HWY_INLINE void score_keys(const float* q, const float* positions, const float* keys, int64_t first,
                           int64_t count, float* scores, V (&highest)[kV]) {
  V position[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) position[v] = load(positions + v * kLanes);
  for (int64_t key = 0; key < count; key += kTile) {
    // The last tile may be short: its rows repeat the last key, and their scores are not used.
    V tile[kTile][kV];
    const float* rows[kTile];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      rows[i] = keys + std::min(key + i, count - 1) * kHeadSize;
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
    }
    multiply_tile(
        tile, [&](int i, int64_t n) { return rows[i][n]; }, q, kHeadSize);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      if (key + i >= count) break;
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        if constexpr (kCausal) {
          const auto hidden = hn::Gt(set(static_cast<float>(first + key + i)), position[v]);
          tile[i][v] = hn::IfThenElse(hidden, set(-INFINITY), tile[i][v]);
        }
        highest[v] = hn::Max(highest[v], tile[i][v]);
        store(tile[i][v], scores + (key + i) * kQueries + v * kLanes);
      }
    }
  }
}

/// Keys first .. first + count ≤ kKeyBlock (float32 [count, N]) join the softmaxes. With kCausal a query sees
/// those up to its position; the first block of all must have one for each query. Only the first kV vectors
/// of queries are there.
template <bool kCausal, int kV>
HWY_NOINLINE void attend_block(QueryBlock& block, const float* keys, const float* values, int64_t first,
                               int64_t count) {
  V highest[kV], before[kV], total[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) before[v] = highest[v] = load(block.highest + v * kLanes);
  score_keys<kCausal>(block.q, block.positions, keys, first, count, block.scores, highest);
  V scale[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    scale[v] = exp(hn::Sub(before[v], highest[v]));
    total[v] = hn::Mul(load(block.total + v * kLanes), scale[v]);
  }
  for (int64_t key = 0; key < count; ++key) {
    RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
      float* score = block.scores + key * kQueries + v * kLanes;
      const V p = exp(hn::Sub(load(score), highest[v]));
      total[v] = hn::Add(total[v], p);
      store(p, score);
    }
  }
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    store(highest[v], block.highest + v * kLanes);
    store(total[v], block.total + v * kLanes);
  }
  for (int64_t n = 0; n < kHeadSize; n += kTile) {
    V tile[kTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        tile[i][v] = hn::Mul(load(block.values + (n + i) * kQueries + v * kLanes), scale[v]);
      }
    }
    multiply_tile(
        tile, [&](int i, int64_t key) { return values[key * kHeadSize + n + i]; }, block.scores, count);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        store(tile[i][v], block.values + (n + i) * kQueries + v * kLanes);
      }
    }
  }
}

/// Keys 0 .. count of a page join the softmaxes of the block's first kV vectors of queries.
template <bool kCausal, int kV, typename T>
HWY_NOINLINE void attend_page(QueryBlock& block, const Rows<T>& keys, const Rows<T>& values, int64_t count) {
  HWY_ALIGN float key_block[kKeyBlock * kHeadSize], value_block[kKeyBlock * kHeadSize];
  for (int64_t first = 0; first < count; first += kKeyBlock) {
    const int64_t here = std::min(kKeyBlock, count - first);
    attend_block<kCausal, kV>(block, keys.from(first).widened(here, key_block),
                              values.from(first).widened(here, value_block), first, here);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
