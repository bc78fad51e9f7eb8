#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_sparse.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "hwy/cache_control.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_sparse.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t kStep = kPairedOutputs;

/// Two vectors of weights of one input: of outputs i … and 16 + i … of a step, i = 0, kLanes, … below 16.
HWY_INLINE void load_pair(const float* step, int64_t i, V& low, V& high) {
  low = load(step + i);
  high = load(step + 16 + i);
}
HWY_INLINE void load_pair(const Float16* step, int64_t i, V& low, V& high) {
  low = load(step + i);
  high = load(step + 16 + i);
}
HWY_INLINE void load_pair(const BFloat16* step, int64_t i, V& low, V& high) {
  const hn::Repartition<uint16_t, F> u16;
  const hn::Repartition<uint32_t, F> u32;
  const auto pairs = hn::BitCast(u32, hn::LoadU(u16, reinterpret_cast<const uint16_t*>(step + 2 * i)));
  low = hn::BitCast(F(), hn::ShiftLeft<16>(pairs));
  high = hn::BitCast(F(), hn::And(pairs, hn::Set(u32, 0xffff0000u)));
}

/// sums += weights of kInputs inputs · values [kInputs, kRows], one after another: zeros change nothing.
template <int kRows, int kInputs, typename T>
HWY_INLINE void add_inputs(const T* weight, int64_t width, const int32_t* indices, const float* values,
                           float* sums) {
  const T* row[kInputs];
  RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) row[k] = weight + indices[k] * width;
  for (int64_t o = 0; o < width; o += kStep) {
    RWKVX_UNROLL for (int64_t i = 0; i < 16; i += kLanes) {
      V low[kInputs], high[kInputs];
      RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) load_pair(row[k] + o, i, low[k], high[k]);
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        float* to = sums + r * kMostTile + o + i;
        V low_sum = load(to), high_sum = load(to + 16);
        RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) {
          const V x = set(values[k * kRows + r]);
          low_sum = hn::MulAdd(low[k], x, low_sum);
          high_sum = hn::MulAdd(high[k], x, high_sum);
        }
        store(low_sum, to);
        store(high_sum, to + 16);
      }
    }
  }
}

HWY_INLINE void fetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) hwy::Prefetch(static_cast<const std::byte*>(from) + at);
}

template <typename T, int kRows>
HWY_INLINE void sum_tile(const InputMajor& w, int64_t t, const NonZero& x, float* sums) {
  constexpr int64_t kInputs = 4;
  const int64_t width = w.width(t), bytes = width * static_cast<int64_t>(sizeof(T));
  const T* weight = reinterpret_cast<const T*>(w.at(t));
  const int64_t ahead = std::max(kInputs, kFirstCacheAhead / bytes);
  int64_t n = 0;
  for (; n + kInputs <= x.count; n += kInputs) {
    for (int64_t next = n + ahead; next < std::min(n + ahead + kInputs, x.count); ++next) {
      fetch(weight + x.indices[next] * width, bytes);
    }
    add_inputs<kRows, kInputs>(weight, width, x.indices + n, x.values + n * kRows, sums);
  }
  for (; n < x.count; ++n) {
    add_inputs<kRows, 1>(weight, width, x.indices + n, x.values + n * kRows, sums);
  }
}

template <int kRows>
HWY_INLINE void sum_rows(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  for (int64_t r = 0; r < kRows; ++r) std::fill_n(sums + r * kMostTile, w.width(tile), 0.0f);
  switch (w.type) {
    case DType::f32:
      return sum_tile<float, kRows>(w, tile, x, sums);
    case DType::bf16:
      return sum_tile<BFloat16, kRows>(w, tile, x, sums);
    default:
      return sum_tile<Float16, kRows>(w, tile, x, sums);
  }
}

void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  switch (x.rows) {
    case 1:
      return sum_rows<1>(w, tile, x, sums);
    case 2:
      return sum_rows<2>(w, tile, x, sums);
    case 4:
      return sum_rows<4>(w, tile, x, sums);
    default:
      return sum_rows<8>(w, tile, x, sums);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(sum_inputs);

void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  if (is_quantised(w.type)) return sum_inputs_quantised(w, tile, x, sums);
  HWY_DYNAMIC_DISPATCH(sum_inputs)(w, tile, x, sums);
}

}  // namespace rwkvx::cpu
#endif
