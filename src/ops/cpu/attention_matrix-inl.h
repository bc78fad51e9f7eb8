/// Attention of many queries by tiles (tiles.h): 32 queries in the columns of scores and of sums, keys as
/// stored in bfloat16, or made it from int8, which is exact. Queries and weights of the softmax are rounded
/// to bfloat16.
#if defined(RWKVX_OPS_CPU_ATTENTION_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_ATTENTION_MATRIX_INL_H_
#undef RWKVX_OPS_CPU_ATTENTION_MATRIX_INL_H_
#else
#define RWKVX_OPS_CPU_ATTENTION_MATRIX_INL_H_
#endif

#include <algorithm>

#include "ops/cpu/attention_head-inl.h"
#include "ops/cpu/tile_pairs-inl.h"
#include "ops/cpu/tiles.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Keys whose scores and weights stay near a core, and keys whose values lie in tiles at a time.
constexpr int64_t kTileKeys = 256, kPackedKeys = 2048;

/// 2^x, x ≤ 0, within 3e-6; what is below 2^-126 becomes that. Weights are rounded to 2^-9.
HWY_INLINE V exp2_of_negative(V x) {
  V one[1] = {hn::Max(set(-126.0f), x)};  // a NaN stays: the second
  exp2_coarse(one);
  return one[0];
}

/// 32 queries and their running softmaxes; scores in units of log 2.
struct TileQueryBlock {
  HWY_ALIGN BFloat16 q[4 * kTileElements];  // as TileScores::queries
  HWY_ALIGN float sums[N * kTileQueries];   // [n, query]
  HWY_ALIGN float scores[kTileKeys * kTileQueries];
  HWY_ALIGN BFloat16 weights[kTileKeys * kTileQueries];  // as TileValues::weights
  HWY_ALIGN float positions[kTileQueries];               // in the own chunk, for the causal mask
  HWY_ALIGN float highest[kTileQueries], total[kTileQueries];
};

/// Queries row_of(0 .. lanes), lanes beyond repeat the last, and softmaxes that have seen nothing.
template <typename RowOf>
HWY_INLINE void load_tile_queries(const Head& head, int64_t lanes, TileQueryBlock& block,
                                  const RowOf& row_of) {
  HWY_ALIGN float rows[kTileQueries * N], columns[N * kTileQueries];
  for (int64_t lane = 0; lane < kTileQueries; ++lane) {
    const float* q = head.query(row_of(std::min(lane, lanes - 1)));
    for (int64_t n = 0; n < N; n += kLanes) store(load(q + n), rows + lane * N + n);
  }
  transpose(rows, N, kTileQueries, N, columns, kTileQueries);
  HWY_ALIGN BFloat16 even[kLanes], odd[kLanes];
  for (int64_t n = 0; n < N; n += 2) {
    for (int64_t group = 0; group < 2; ++group) {
      // Rounded as store() rounds, which keeps what is not finite.
      store(load(columns + n * kTileQueries + group * kLanes), even);
      store(load(columns + (n + 1) * kTileQueries + group * kLanes), odd);
      BFloat16* to = block.q + (n / kTileDepth * 2 + group) * kTileElements + n % kTileDepth / 2 * kTileDepth;
      store_pairs(load(even), load(odd), to);
    }
  }
  std::fill(std::begin(block.sums), std::end(block.sums), 0.0f);
  std::fill(std::begin(block.total), std::end(block.total), 0.0f);
  std::fill(std::begin(block.highest), std::end(block.highest),
            -1e30f);  // finite: the first difference is a number
}

/// A vector as bfloat16, in the lower halves. int8 is exact.
HWY_INLINE hn::Vec<U32> bits_of(const BFloat16* x) {
  const hn::Rebind<uint16_t, F> u16;
  return hn::PromoteTo(U32(), hn::LoadU(u16, reinterpret_cast<const uint16_t*>(x)));
}
HWY_INLINE hn::Vec<U32> bits_of(const int8_t* x) { return hn::ShiftRight<16>(hn::BitCast(U32(), load(x))); }

/// Values [count, N] as TileValues::values, zeros behind the last.
template <typename T>
void pack_values(const T* values, int64_t count, BFloat16* to) {
  HWY_ALIGN uint32_t pairs[kTileRows * kLanes];  // [pair of keys, channel]
  const auto row = [&](int64_t key, int64_t n) {
    return key < count ? bits_of(values + key * N + n) : hn::Zero(U32());
  };
  for (int64_t key = 0; key < count; key += kTileDepth) {
    for (int64_t n = 0; n < N; n += kTileRows, to += kTileElements) {
      for (int64_t p = 0; p < kTileRows; ++p) {
        const auto pair = hn::Or(row(key + 2 * p, n), hn::ShiftLeft<16>(row(key + 2 * p + 1, n)));
        hn::StoreU(pair, U32(), pairs + p * kLanes);
      }
      transpose(reinterpret_cast<const float*>(pairs), kLanes, kTileRows, kLanes,
                reinterpret_cast<float*>(to), kLanes);
    }
  }
}

/// Keys [count, N] as bfloat16.
inline void widen_keys(const int8_t* keys, int64_t count, BFloat16* to) {
  const hn::Rebind<int32_t, F> i32;
  const hn::Rebind<uint16_t, F> u16;
  for (int64_t i = 0; i < count * N; i += kLanes) {
    hn::StoreU(hn::DemoteTo(u16, hn::BitCast(i32, bits_of(keys + i))), u16,
               reinterpret_cast<uint16_t*>(to + i));
  }
}

/// Keys from some one of a chunk on, with what belongs to them.
struct TileKeys {
  const BFloat16* keys;                    // [count, N], rows behind them up to a multiple of 16 can be read
  const BFloat16* values;                  // as TileValues::values
  const float *key_scales, *value_scales;  // of each key, or null

  TileKeys from(int64_t key) const {
    const auto scales = [&](const float* all) { return all != nullptr ? all + key : nullptr; };
    return {keys + key * N, values + key * N, scales(key_scales), scales(value_scales)};
  }
};

/// Keys key .. end of a chunk, at most kPackedKeys, in scratch memory where they are not as tiles want them.
template <typename T>
TileKeys pack_keys(const Rows<T>& keys, const Rows<T>& values, int64_t key, int64_t end,
                   AttentionScratch& scratch) {
  auto* packed = scratch.values.take<BFloat16>(kPackedKeys * N);
  pack_values(values.row(key), end - key, packed);
  if constexpr (Rows<T>::kScaled) {
    auto* wide = scratch.wide_keys.take<BFloat16>(kPackedKeys * N);
    widen_keys(keys.row(key), end - key, wide);
    return {wide, packed, keys.scales + key, values.scales + key};
  } else {
    return {keys.row(key), packed, nullptr, nullptr};
  }
}

/// Keys first .. first + count ≤ kTileKeys of a chunk, whose scores are there, join the softmaxes; `keys` are
/// they. With kCausal a query sees those up to its position; the first block of all must have one for each.
template <bool kCausal, bool kScaled>
HWY_NOINLINE void attend_scores(TileQueryBlock& block, const TileUnit& unit, const TileKeys& keys,
                                int64_t first, int64_t count) {
  const V unit_of_scores = set(0.125f * 1.44269504088896341f);  // 1/√N, and the logarithm's base
  V before[2], highest[2], total[2], position[2];
  RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
    highest[g] = set(-INFINITY);
    before[g] = load(block.highest + g * kLanes);
    if constexpr (kCausal) position[g] = load(block.positions + g * kLanes);
  }
  for (int64_t key = 0; key < count; ++key) {
    RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
      float* at = block.scores + key * kTileQueries + g * kLanes;
      V score = load(at);
      if constexpr (kScaled) score = hn::Mul(score, set(keys.key_scales[key]));
      if constexpr (kCausal) {
        score =
            hn::IfThenElse(hn::Gt(set(static_cast<float>(first + key)), position[g]), set(-INFINITY), score);
      }
      if constexpr (kCausal || kScaled) store(score, at);
      highest[g] = hn::Max(highest[g], score);
    }
  }
  bool moved = false;
  RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
    highest[g] = hn::Max(hn::Mul(highest[g], unit_of_scores), before[g]);
    moved = moved || !hn::AllTrue(F(), hn::Eq(highest[g], before[g]));
    total[g] = load(block.total + g * kLanes);
  }
  if (moved) {
    V scale[2];
    RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
      scale[g] = exp2_of_negative(hn::Sub(before[g], highest[g]));
      total[g] = hn::Mul(total[g], scale[g]);
      store(highest[g], block.highest + g * kLanes);
    }
    for (int64_t n = 0; n < N; ++n) {
      RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
        float* at = block.sums + n * kTileQueries + g * kLanes;
        store(hn::Mul(load(at), scale[g]), at);
      }
    }
  }
  const auto weight = [&](int64_t key, int g) {
    const V score = load(block.scores + key * kTileQueries + g * kLanes);
    return exp2_of_negative(hn::MulSub(score, unit_of_scores, highest[g]));
  };
  const auto value_weight = [&](V p, int64_t key) {
    if constexpr (kScaled) return key < count ? hn::Mul(p, set(keys.value_scales[key])) : p;
    return p;
  };
  const int64_t steps = (count + kTileDepth - 1) / kTileDepth;
  for (int64_t key = 0; key < steps * kTileDepth; key += 2) {
    RWKVX_UNROLL for (int g = 0; g < 2; ++g) {
      const V even = key < count ? weight(key, g) : zero(),
              odd = key + 1 < count ? weight(key + 1, g) : zero();
      total[g] = hn::Add(total[g], hn::Add(even, odd));
      store_pairs(
          value_weight(even, key), value_weight(odd, key + 1),
          block.weights + (key / kTileDepth * 2 + g) * kTileElements + key % kTileDepth / 2 * kTileDepth);
    }
  }
  RWKVX_UNROLL for (int g = 0; g < 2; ++g) store(total[g], block.total + g * kLanes);
  unit.add_values({keys.values, block.weights, steps, block.sums});
}

/// Keys first .. end of a chunk, of which `keys` has those from `first` on.
template <bool kCausal>
HWY_INLINE void attend_tiles(TileQueryBlock& block, const TileUnit& unit, const TileKeys& keys, int64_t first,
                             int64_t end) {
  for (int64_t key = first; key < end; key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, end - key);
    const TileKeys part = keys.from(key - first);
    unit.score({part.keys, block.q, (count + kTileRows - 1) / kTileRows, block.scores});
    if (part.key_scales != nullptr) {
      attend_scores<kCausal, true>(block, unit, part, key, count);
    } else {
      attend_scores<kCausal, false>(block, unit, part, key, count);
    }
  }
}

/// Adds what the first `lanes` have seen to their rows' softmaxes.
template <typename SoftmaxOf>
HWY_INLINE void merge_tiles(const TileQueryBlock& block, int64_t lanes, const SoftmaxOf& softmax_of) {
  HWY_ALIGN float values[kTileQueries * N];
  transpose(block.sums, kTileQueries, N, kTileQueries, values, N);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    constexpr float kLog2 = 0.693147180559945f;
    merge_softmax(softmax_of(lane), block.highest[lane] * kLog2, block.total[lane], values + lane * N);
  }
}

/// The earlier keys of the rows' own chunk, for rows first .. last of one chunk.
template <typename T>
HWY_NOINLINE void attend_own_tiles(const Head& head, int64_t first, int64_t last, const TileUnit& unit,
                                   AttentionScratch& scratch, Softmax* softmax) {
  const int64_t own = head.chunk(first), slot = head.position(first) % head.kv.chunk_size;
  const auto keys = head.keys<T>(own), values = head.values<T>(own);
  const int64_t all = slot + last - first;
  auto& block = *scratch.tile_block.take<TileQueryBlock>(1);
  unit.begin();
  for (int64_t key = 0; key < all; key += kPackedKeys) {
    const int64_t end = std::min(key + kPackedKeys, all);
    const TileKeys packed = pack_keys(keys, values, key, end, scratch);
    for (int64_t row = first; row < last; row += kTileQueries) {
      const int64_t lanes = std::min(kTileQueries, last - row), position = slot + row - first;
      if (position + lanes <= key) continue;
      load_tile_queries(head, lanes, block, [&](int64_t lane) { return row + lane; });
      for (int64_t lane = 0; lane < kTileQueries; ++lane) {
        block.positions[lane] = static_cast<float>(position + std::min(lane, lanes - 1));
      }
      // Whole blocks of keys that all queries see need no mask.
      const int64_t seen =
          std::min(end, key + std::max<int64_t>(0, position + 1 - key) / kTileKeys * kTileKeys);
      attend_tiles<false>(block, unit, packed, key, seen);
      attend_tiles<true>(block, unit, packed.from(seen - key), seen, std::min(end, position + lanes));
      merge_tiles(block, lanes, [&](int64_t lane) -> Softmax& { return softmax[row - head.begin + lane]; });
    }
  }
  unit.end();
}

/// The rows requests[0 .. count] of the task and all of a chunk.
template <typename T>
HWY_NOINLINE void attend_chunk_tiles(const Head& head, int64_t chunk, const int32_t* requests, int64_t count,
                                     const TileUnit& unit, AttentionScratch& scratch, Softmax* softmax) {
  const auto keys = head.keys<T>(chunk), values = head.values<T>(chunk);
  auto& block = *scratch.tile_block.take<TileQueryBlock>(1);
  unit.begin();
  for (int64_t key = 0; key < head.kv.chunk_size; key += kPackedKeys) {
    const int64_t end = std::min(key + kPackedKeys, head.kv.chunk_size);
    const TileKeys packed = pack_keys(keys, values, key, end, scratch);
    for (int64_t at = 0; at < count; at += kTileQueries) {
      const int64_t lanes = std::min(kTileQueries, count - at);
      load_tile_queries(head, lanes, block, [&](int64_t lane) { return head.begin + requests[at + lane]; });
      attend_tiles<false>(block, unit, packed, key, end);
      merge_tiles(block, lanes, [&](int64_t lane) -> Softmax& { return softmax[requests[at + lane]]; });
    }
  }
  unit.end();
}

template <typename T>
constexpr bool kTilesTake = kHasTiles && !std::is_same_v<T, const float>;

/// Whether so many queries of a chunk are worth its values' packing.
template <typename T>
HWY_INLINE bool by_tiles(const Head& head, int64_t queries) {
  constexpr int64_t kWorthPacking = 16;
  if constexpr (kTilesTake<T>) {
    return head.tiles != nullptr && queries >= kWorthPacking && head.kv.chunk_size % kTileDepth == 0;
  }
  return false;
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
