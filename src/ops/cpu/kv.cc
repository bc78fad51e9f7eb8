#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/kv.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

/// One head's rows of a page, T float, BFloat16 or int8_t.
template <typename T>
struct PageRows {
  T* data;
  float* scales;  // int8_t only
  HWY_INLINE void put(int64_t slot, const float* x) const {
    T* to = data + slot * N;
    if constexpr (std::is_same_v<T, int8_t>) {
      V most = zero();
      auto finite = hn::IsFinite(load(x));
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) {
        most = hn::Max(most, hn::Abs(load(x + n)));
        finite = hn::And(finite, hn::IsFinite(load(x + n)));
      }
      if (!hn::AllTrue(F(), finite)) {  // seen in whatever is computed with it
        scales[slot] = NAN;
        std::fill_n(to, N, int8_t{1});
        return;
      }
      const float largest = hn::GetLane(hn::MaxOfLanes(F(), most));
      scales[slot] = largest / 127;
      const V inverse = set(largest > 0 ? 127 / largest : 0);
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) store(hn::Mul(load(x + n), inverse), to + n);
    } else {
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) store(load(x + n), to + n);
    }
  }
  HWY_INLINE V at(int64_t slot, int64_t n) const {
    const V x = load(data + slot * N + n);
    if constexpr (std::is_same_v<T, int8_t>) return hn::Mul(x, set(scales[slot]));
    return x;
  }
};

template <typename T>
struct HeadPages {
  const KvChunks& kv;
  int64_t head;

  HWY_INLINE PageRows<T> rows(std::span<void* const> pages, std::span<float* const> scales,
                              int64_t chunk) const {
    const auto c = static_cast<size_t>(chunk);
    const int64_t first = head * kv.chunk_size;
    constexpr bool scaled = std::is_same_v<T, int8_t>;
    return {static_cast<T*>(pages[c]) + first * N, scaled ? scales[c] + first : nullptr};
  }
  HWY_INLINE PageRows<T> keys(int64_t chunk) const { return rows(kv.keys, kv.key_scales, chunk); }
  HWY_INLINE PageRows<T> values(int64_t chunk) const { return rows(kv.values, kv.value_scales, chunk); }
  /// The sums take the key in `slot`.
  HWY_INLINE void add_key(const PageRows<T>& keys, int64_t chunk, int64_t slot) const {
    const auto c = static_cast<size_t>(chunk);
    const auto add = [&](float* sums, bool first) {
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) {
        const V key = keys.at(slot, n);
        store(first ? key : hn::Add(load(sums + n), key), sums + n);
      }
    };
    add(static_cast<float*>(kv.key_sums[c]) + head * N, slot == 0);
    if (kv.part == 0) return;
    const int64_t row = head * (kv.chunk_size / kv.part) + slot / kv.part;
    add(static_cast<float*>(kv.part_sums[c]) + row * N, slot % kv.part == 0);
  }
};

template <typename T>
HWY_INLINE void append_typed(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv,
                             int64_t head) {
  const int64_t width = k.dim(1);
  const HeadPages<T> pages{kv, head};
  for (int64_t t = begin; t < end; ++t) {
    const int64_t position = kv.length - end + t;
    const int64_t chunk = position / kv.chunk_size, slot = position % kv.chunk_size;
    const PageRows<T> keys = pages.keys(chunk);
    keys.put(slot, k.as<float>() + t * width + head * N);
    pages.values(chunk).put(slot, v.as<float>() + t * width + head * N);
    pages.add_key(keys, chunk, slot);
  }
}

template <typename T>
HWY_INLINE void keep_typed(const KvChunks& kv, ConstView kept, int64_t head) {
  const HeadPages<T> pages{kv, head};
  const auto copy = [](const PageRows<T>& from, int64_t from_slot, const PageRows<T>& to, int64_t slot) {
    if (from.data + from_slot * N == to.data + slot * N) return;
    std::memcpy(to.data + slot * N, from.data + from_slot * N, N * sizeof(T));
    if constexpr (std::is_same_v<T, int8_t>) to.scales[slot] = from.scales[from_slot];
  };
  const int32_t* from = kept.as<int32_t>() + head * kept.dim(1);
  for (int64_t i = 0; i < kept.dim(1); ++i) {
    const int64_t from_chunk = from[i] / kv.chunk_size, from_slot = from[i] % kv.chunk_size;
    const int64_t chunk = i / kv.chunk_size, slot = i % kv.chunk_size;
    const PageRows<T> keys = pages.keys(chunk);
    copy(pages.keys(from_chunk), from_slot, keys, slot);
    copy(pages.values(from_chunk), from_slot, pages.values(chunk), slot);
    pages.add_key(keys, chunk, slot);
  }
}

template <typename T>
HWY_INLINE void distinct_typed(const KvDistinct& call, int64_t head) {
  const HeadPages<T> pages{call.kv, head};
  const int64_t candidates = call.scores.dim(1), chunk_size = call.kv.chunk_size;
  float* scores = call.scores.as<float>() + head * candidates;
  // First 1 / ‖k‖, and the sum, of each chunk first: long sums of small terms lose too much.
  V sum[kHeadVectors];
  RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) sum[v] = zero();
  for (int64_t first = 0; first < candidates; first += chunk_size) {
    const PageRows<T> keys = pages.keys(first / chunk_size);
    V of_chunk[kHeadVectors];
    RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) of_chunk[v] = zero();
    for (int64_t slot = 0; slot < std::min(chunk_size, candidates - first); ++slot) {
      V key[kHeadVectors], squares = zero();
      RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) {
        key[v] = keys.at(slot, v * kLanes);
        squares = hn::MulAdd(key[v], key[v], squares);
      }
      const float norm = std::sqrt(sum_of_lanes(squares));
      const float inverse = norm > 0 ? 1 / norm : 0;
      scores[first + slot] = inverse;
      RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) of_chunk[v] =
          hn::MulAdd(key[v], set(inverse), of_chunk[v]);
    }
    RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) sum[v] = hn::Add(sum[v], of_chunk[v]);
  }
  V squares = zero();
  RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) squares = hn::MulAdd(sum[v], sum[v], squares);
  const float norm = std::sqrt(sum_of_lanes(squares));
  const V minus_inverse = set(norm > 0 ? -1 / norm : 0);
  RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) sum[v] = hn::Mul(sum[v], minus_inverse);
  for (int64_t first = 0; first < candidates; first += chunk_size) {
    const PageRows<T> keys = pages.keys(first / chunk_size);
    for (int64_t slot = 0; slot < std::min(chunk_size, candidates - first); ++slot) {
      V product = zero();
      RWKVX_UNROLL for (int64_t v = 0; v < kHeadVectors; ++v) {
        product = hn::MulAdd(keys.at(slot, v * kLanes), sum[v], product);
      }
      scores[first + slot] *= sum_of_lanes(product);
    }
  }
}

void kv_distinct_head(const KvDistinct& call, int64_t head) {
  with_stored(call.kv.dtype, [&](auto stored) { distinct_typed<decltype(stored)>(call, head); });
}

void kv_append_head(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv, int64_t head) {
  with_stored(kv.dtype, [&](auto stored) { append_typed<decltype(stored)>(k, v, begin, end, kv, head); });
}

void kv_keep_head(const KvChunks& kv, ConstView kept, int64_t head) {
  with_stored(kv.dtype, [&](auto stored) { keep_typed<decltype(stored)>(kv, kept, head); });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(kv_append_head);
HWY_EXPORT(kv_keep_head);
HWY_EXPORT(kv_distinct_head);

void kv_append_head(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv, int64_t head) {
  HWY_DYNAMIC_DISPATCH(kv_append_head)(k, v, begin, end, kv, head);
}
void kv_keep_head(const KvChunks& kv, ConstView kept, int64_t head) {
  HWY_DYNAMIC_DISPATCH(kv_keep_head)(kv, kept, head);
}
void kv_distinct_head(const KvDistinct& call, int64_t head) {
  HWY_DYNAMIC_DISPATCH(kv_distinct_head)(call, head);
}

}  // namespace rwkvx::cpu
#endif
