#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_decode.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "hwy/cache_control.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t kStep = 2 * kLanes;  // weights read at once
// Rows of weights read from memory at once: one stream, but a sum of narrow vectors would wait for itself.
constexpr int kStreams = kLanes == 16 ? 1 : 2;

/// Two vectors of a weight row. For bf16 the even and the odd elements, which are a shift and a mask away: x
/// is laid out to match.
HWY_INLINE void load_step(const float* p, V& low, V& high) {
  low = load(p);
  high = load(p + kLanes);
}
HWY_INLINE void load_step(const Float16* p, V& low, V& high) {
  low = load(p);
  high = load(p + kLanes);
}
HWY_INLINE void load_step(const BFloat16* p, V& low, V& high) {
  const hn::Repartition<uint16_t, F> u16;
  const hn::Repartition<uint32_t, F> u32;
  const auto pairs = hn::BitCast(u32, hn::LoadU(u16, reinterpret_cast<const uint16_t*>(p)));
  low = hn::BitCast(F(), hn::ShiftLeft<16>(pairs));
  high = hn::BitCast(F(), hn::And(pairs, hn::Set(u32, 0xffff0000u)));
}

void spread_input(const LinearCall& call, int64_t padded, float* to) {
  const int64_t rows = call.x.dim(0), in = call.x.dim(1);
  const bool even_odd = call.w->weight.dtype() == DType::bf16;
  with_real_or_bf16(call.x.dtype(), call.x.data(), [&](auto* x) {
    for (int64_t r = 0; r < rows; ++r) {
      const auto* from = x + r * in;
      float* row = to + r * padded;
      int64_t i = 0;
      for (; i + kStep <= in; i += kStep) {
        const V low = load(from + i), high = load(from + i + kLanes);
        store(even_odd ? hn::ConcatEven(F(), high, low) : low, row + i);
        store(even_odd ? hn::ConcatOdd(F(), high, low) : high, row + i + kLanes);
      }
      if (i == in) continue;
      std::remove_cv_t<std::remove_reference_t<decltype(*from)>> tail[kStep] = {};
      std::copy(from + i, from + in, tail);
      const V low = load(tail), high = load(tail + kLanes);
      store(even_odd ? hn::ConcatEven(F(), high, low) : low, row + i);
      store(even_odd ? hn::ConcatOdd(F(), high, low) : high, row + i + kLanes);
    }
  });
}

/// sums[r · sums_stride + o] = weight row o · x row r, for kOuts weight rows at once: each is read once for
/// all rows of x. `count` is a multiple of kStep. Adds to sums when kAdd.
template <int kOuts, int kRows, bool kAdd, typename T>
HWY_INLINE void dot_rows(const T* weight, int64_t stride, int64_t count, const float* x, int64_t padded,
                         float* sums, int64_t sums_stride) {
  V sum[kOuts][kRows];
  RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) sum[o][r] = zero();
  }
  for (int64_t i = 0; i < count; i += kStep) {
    V low[kOuts], high[kOuts];
    RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
      if constexpr (!kAdd && kOuts <= kStreams) fetch_ahead(weight + o * stride + i);
      if constexpr (!kAdd && kRows == 8)
        hwy::Prefetch(reinterpret_cast<const std::byte*>(weight + o * stride + i) + kFirstCacheAhead);
      load_step(weight + o * stride + i, low[o], high[o]);
    }
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      const V x_low = hn::Load(F(), x + r * padded + i), x_high = hn::Load(F(), x + r * padded + i + kLanes);
      RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
        sum[o][r] = hn::MulAdd(low[o], x_low, sum[o][r]);
        sum[o][r] = hn::MulAdd(high[o], x_high, sum[o][r]);
      }
    }
  }
  RWKVX_UNROLL for (int o = 0; o < kOuts; ++o) {
    RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
      float& to = sums[r * sums_stride + o];
      to = (kAdd ? to : 0.0f) + sum_of_lanes(sum[o][r]);
    }
  }
}

template <int kOuts, int kRows, typename T>
HWY_INLINE void dot_rows_and_tail(const T* weight, int64_t in, const float* x, int64_t padded, float* sums,
                                  int64_t sums_stride) {
  const int64_t whole = in / kStep * kStep;
  dot_rows<kOuts, kRows, false>(weight, in, whole, x, padded, sums, sums_stride);
  if (whole == in) return;
  T tail[kOuts * kStep] = {};
  for (int o = 0; o < kOuts; ++o) std::copy(weight + o * in + whole, weight + (o + 1) * in, tail + o * kStep);
  dot_rows<kOuts, kRows, true>(tail, kStep, kStep, x + whole, padded, sums, sums_stride);
}

template <int kRows, typename T>
HWY_INLINE void dot_block(const T* weight, int64_t in, int64_t outs, const float* x, int64_t padded,
                          bool cached, float* sums, int64_t sums_stride) {
  int64_t o = 0;
  const auto pass = [&]<int kOuts>() {
    for (; o + kOuts <= outs; o += kOuts)
      dot_rows_and_tail<kOuts, kRows>(weight + o * in, in, x, padded, sums + o, sums_stride);
  };
  // As many as there are registers for; 8 rows are bound by arithmetic from memory too.
  if (cached || kRows == 8) pass.template operator()<kRows <= 2 ? 4 : 2>();
  pass.template operator()<kStreams>();
  for (; o < outs; ++o) dot_rows_and_tail<1, kRows>(weight + o * in, in, x, padded, sums + o, sums_stride);
}

template <typename T>
HWY_INLINE void dot_any(int64_t rows, const T* weight, int64_t in, int64_t outs, const float* x,
                        int64_t padded, bool cached, float* sums, int64_t stride) {
  constexpr int64_t kMost = kLanes == 16 ? 8 : 4;
  const auto pass = [&]<int kRows>() {
    for (; rows >= kRows; rows -= kRows, x += kRows * padded, sums += kRows * stride, cached = true)
      dot_block<kRows>(weight, in, outs, x, padded, cached, sums, stride);
  };
  pass.template operator()<kMost>();
  pass.template operator()<4>();
  pass.template operator()<3>();
  pass.template operator()<2>();
  pass.template operator()<1>();
}

/// One row of results: activation, addition, rounding. `sums` may be read in whole vectors.
template <typename Out>
HWY_INLINE void finish_row(const LinearCall& call, const float* sums, int64_t outs, Out* y) {
  int64_t o = 0;
  for (; o + kLanes <= outs; o += kLanes) {
    const V value = load(sums + o);
    store(call.add ? hn::Add(load(y + o), value) : activate(call.activation, value), y + o);
  }
  if (o == outs) return;
  Out tail[kLanes] = {};
  std::copy(y + o, y + outs, tail);
  const V value = load(sums + o);
  store(call.add ? hn::Add(load(tail), value) : activate(call.activation, value), tail);
  std::copy(tail, tail + (outs - o), y + o);
}

void dot_few_rows(const ConstView& weight, int64_t first, int64_t outs, const float* x, int64_t rows,
                  int64_t padded, bool cached, float* sums) {
  const int64_t in = weight.dim(1), at = first * in;
  switch (weight.dtype()) {
    case DType::f32:
      return dot_any(rows, weight.as<float>() + at, in, outs, x, padded, cached, sums, kOutBlock);
    case DType::bf16:
      return dot_any(rows, weight.as<BFloat16>() + at, in, outs, x, padded, cached, sums, kOutBlock);
    case DType::f16:
      return dot_any(rows, weight.as<Float16>() + at, in, outs, x, padded, cached, sums, kOutBlock);
    default:
      RWKVX_ASSERT(!"a type that prepare() lets through");
  }
}

void pair_rows(const ConstView& x, float* to) {
  const int64_t rows = x.dim(0), pairs = x.dim(1) / 2;
  transpose(static_cast<const float*>(x.data()), pairs, rows, pairs, to, rows);
}

void turn_tile_sums(const float* from, int64_t outs, int64_t rows, float* sums) {
  transpose(from, rows, outs, rows, sums, kOutBlock);
}

void finish_few_rows(const LinearCall& call, int64_t first_row, int64_t rows, int64_t first, int64_t outs,
                     const float* sums) {
  with_real_or_bf16(call.y.dtype(), call.y.data(), [&](auto* y) {
    for (int64_t r = 0; r < rows; ++r) {
      finish_row(call, sums + r * kOutBlock, outs, y + (first_row + r) * call.w->out() + first);
    }
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(spread_input);
HWY_EXPORT(dot_few_rows);
HWY_EXPORT(pair_rows);
HWY_EXPORT(turn_tile_sums);
HWY_EXPORT(finish_few_rows);

void spread_input(const LinearCall& call, int64_t padded, float* to) {
  HWY_DYNAMIC_DISPATCH(spread_input)(call, padded, to);
}
void dot_few_rows(const ConstView& weight, int64_t first, int64_t outs, const float* x, int64_t rows,
                  int64_t padded, bool cached, float* sums) {
  HWY_DYNAMIC_DISPATCH(dot_few_rows)(weight, first, outs, x, rows, padded, cached, sums);
}
void pair_rows(const ConstView& x, float* to) { HWY_DYNAMIC_DISPATCH(pair_rows)(x, to); }
void turn_tile_sums(const float* from, int64_t outs, int64_t rows, float* sums) {
  HWY_DYNAMIC_DISPATCH(turn_tile_sums)(from, outs, rows, sums);
}
void finish_few_rows(const LinearCall& call, int64_t first_row, int64_t rows, int64_t first, int64_t outs,
                     const float* sums) {
  HWY_DYNAMIC_DISPATCH(finish_few_rows)(call, first_row, rows, first, outs, sums);
}

}  // namespace rwkvx::cpu
#endif
