#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_sparse.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

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

/// sums [kRows, stride] += weights of kInputs inputs, which begin at `rows`, · values [kInputs, kRows], one
/// after another: zeros change nothing. Meanwhile the weights at `next` are fetched, those of all these
/// inputs side by side.
template <int kRows, int kInputs, typename T>
HWY_INLINE void add_inputs(const T* const* rows, const T* const* next, const float* values, int64_t outs,
                           int64_t stride, float* sums) {
  for (int64_t o = 0; o < outs; o += kStep) {
    RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) {
      for (int64_t i = 0; i < kStep; i += kLine / sizeof(T)) prefetch(next[k] + o + i);
    }
    RWKVX_UNROLL for (int64_t i = 0; i < 16; i += kLanes) {
      V low[kInputs], high[kInputs];
      RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) load_pair(rows[k] + o, i, low[k], high[k]);
      RWKVX_UNROLL for (int r = 0; r < kRows; ++r) {
        float* to = sums + r * stride + o + i;
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

template <typename T, int kRows>
HWY_INLINE void add_part(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  constexpr int64_t kInputs = 4;
  const T* weight = reinterpret_cast<const T*>(w.data()) + part.first;
  // Whole steps of inputs. Behind the list's end its last input is fetched once more, for nothing.
  const int64_t bytes = kInputs * part.outs * static_cast<int64_t>(sizeof(T));
  const int64_t ahead = kInputs * ((kFirstCacheAhead + bytes - 1) / bytes);
  const auto input = [&](int64_t n) { return weight + x.indices[std::min(n, x.count - 1)] * w.out; };
  for (int64_t n = part.begin; n < std::min(part.begin + ahead, part.end); ++n) {
    for (int64_t o = 0; o < part.outs; o += kLine / sizeof(T)) prefetch(input(n) + o);
  }
  const T *rows[kInputs], *next[kInputs];
  int64_t n = part.begin;
  for (; n + kInputs <= part.end; n += kInputs) {
    for (int64_t k = 0; k < kInputs; ++k) {
      rows[k] = input(n + k);
      next[k] = input(n + ahead + k);
    }
    add_inputs<kRows, kInputs>(rows, next, x.values + n * kRows, part.outs, w.out, sums);
  }
  for (; n < part.end; ++n) {
    rows[0] = input(n);
    next[0] = input(n + ahead);
    add_inputs<kRows, 1>(rows, next, x.values + n * kRows, part.outs, w.out, sums);
  }
}

template <typename T>
HWY_INLINE void add_rows(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  switch (x.rows) {
    case 1:
      return add_part<T, 1>(w, x, part, sums);
    case 2:
      return add_part<T, 2>(w, x, part, sums);
    case 4:
      return add_part<T, 4>(w, x, part, sums);
    default:
      return add_part<T, 8>(w, x, part, sums);
  }
}

void add_inputs_of_type(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  switch (w.type) {
    case DType::f32:
      return add_rows<float>(w, x, part, sums);
    case DType::bf16:
      return add_rows<BFloat16>(w, x, part, sums);
    default:
      return add_rows<Float16>(w, x, part, sums);
  }
}

int64_t list_non_zero(const ConstView& row, int32_t* indices, float* values) {
  const hn::Rebind<int32_t, F> i32;
  const int64_t in = row.elements(), whole = in / kLanes * kLanes;
  int64_t count = 0;
  with_real_or_bf16(row.dtype(), row.data(), [&](const auto* x) {
    auto at = hn::Iota(i32, 0);
    for (int64_t i = 0; i < whole; i += kLanes, at = hn::Add(at, hn::Set(i32, kLanes))) {
      const V v = load(x + i);
      const auto some = hn::Not(hn::Eq(v, zero()));  // NaN too, for which Ne is false
      // Whole vectors: processors compress slowly to memory.
      hn::StoreU(hn::Compress(v, some), F(), values + count);
      hn::StoreU(hn::Compress(at, hn::RebindMask(i32, some)), i32, indices + count);
      count += static_cast<int64_t>(hn::CountTrue(F(), some));
    }
    for (int64_t i = whole; i < in; ++i) {  // there is no room for a vector
      values[count] = to_float(x[i]);
      indices[count] = static_cast<int32_t>(i);
      count += values[count] != 0;
    }
  });
  return count;
}

void clear_sums(int64_t count, float* sums) {
  for (int64_t o = 0; o < count; o += kLanes) store(zero(), sums + o);
}

void add_segments(const float* sums, int64_t stride, int64_t count, float* to) {
  for (int64_t o = 0; o < count; o += kLanes) {
    V total = load(sums + o);
    RWKVX_UNROLL for (int64_t s = 1; s < kSegments; ++s) total = hn::Add(total, load(sums + s * stride + o));
    store(total, to + o);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(add_inputs_of_type);
HWY_EXPORT(add_segments);
HWY_EXPORT(clear_sums);
HWY_EXPORT(list_non_zero);

void sum_inputs(const InputMajor& w, const NonZero& x, const SparsePart& part, float* sums) {
  float* to = sums + part.first;
  for (int64_t r = 0; r < x.rows; ++r) HWY_DYNAMIC_DISPATCH(clear_sums)(part.outs, to + r * w.out);
  const auto listed = [&](int64_t segment) {
    const auto at = std::lower_bound(x.indices, x.indices + x.count, segment_begin(w, segment));
    return at - x.indices;
  };
  const ListedPart inputs{listed(part.segment), listed(part.segment + 1), part.first, part.outs};
  if (inputs.begin == inputs.end) return;
  if (is_quantised(w.type)) return add_inputs_quantised(w, x, inputs, to);
  HWY_DYNAMIC_DISPATCH(add_inputs_of_type)(w, x, inputs, to);
}

int64_t list_non_zero(const ConstView& row, int32_t* indices, float* values) {
  return HWY_DYNAMIC_DISPATCH(list_non_zero)(row, indices, values);
}

void add_segments(const float* sums, int64_t stride, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(add_segments)(sums, stride, count, to);
}

}  // namespace rwkvx::cpu
#endif
