#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_sparse_quantised.cc"
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

using I32 = hn::Rebind<int32_t, F>;

constexpr int64_t kUnit = 64;  // outputs whose nibbles lie together

/// Where things lie, of outputs from some on.
template <DType kType>
struct Blocks {
  static constexpr BlockLayout kLayout = block_layout(kType);
  int64_t width;  ///< outputs in memory
  const std::byte *weights, *scales, *d;

  Blocks(const InputMajor& w, int64_t first)
      : width(w.out),
        weights(w.data() + kLayout.input(first)),
        scales(w.data() + kLayout.part_scales_at(w.in, w.out) + first),
        d(w.data() + kLayout.block_scales_at(w.in, w.out) + 2 * first) {}
  const std::byte* input(int64_t i) const { return weights + i * kLayout.input(width); }
  /// The p-th part's scales, counted over all blocks; its minima lie `width` bytes behind them.
  const std::byte* part_scales(int64_t p) const { return scales + p * kLayout.part_scales(width); }
  /// d; d_min lies 2 · width bytes behind it.
  const std::byte* block_scales(int64_t b) const { return d + b * kLayout.block_scales(width); }
};

constexpr int kVectors = 4;  // that are computed together, one for each nibble of a word

/// Of the lowest four bits of each lane, less the offset.
template <int kOffset>
HWY_INLINE V nibble_weights(hn::Vec<I32> words) {
#if HWY_TARGET <= HWY_AVX3
  return V{_mm512_permutexvar_ps(words.raw, hn::Iota(F(), -kOffset).raw)};  // from a table of the 16
#else
  const auto q = hn::And(words, hn::Set(I32(), 15));
  return hn::ConvertTo(F(), kOffset ? hn::Sub(q, hn::Set(I32(), kOffset)) : q);
#endif
}

/// Weights of one input, of outputs o + 16 v + i … for each v; o begins a unit.
template <DType kType>
HWY_INLINE void load_weights(const std::byte* input, int64_t o, int64_t i, V* to) {
  constexpr BlockLayout kLayout = block_layout(kType);
  if constexpr (kLayout.nibbles) {
    const hn::Rebind<uint16_t, F> u16;
    auto words = hn::PromoteTo(I32(), hn::LoadU(u16, reinterpret_cast<const uint16_t*>(input + o / 2) + i));
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      to[v] = nibble_weights<kLayout.offset>(words);
      words = hn::ShiftRight<4>(words);
    }
  } else {
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      to[v] = load(reinterpret_cast<const int8_t*>(input) + o + 16 * v + i);
    }
  }
}

/// Scales of a part and its minima, of the same outputs.
template <DType kType>
HWY_INLINE void load_scales(const Blocks<kType>& blocks, int64_t p, int64_t o, int64_t i, V* scale,
                            V* minimum) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const auto* part = reinterpret_cast<const uint8_t*>(blocks.part_scales(p)) + o + i;
  const auto* block = reinterpret_cast<const Float16*>(blocks.block_scales(p / kLayout.parts())) + o + i;
  RWKVX_UNROLL for (int64_t v = 0; v < kVectors; ++v) {
    const V d = load(block + 16 * v);
    if constexpr (kLayout.minima) {
      scale[v] = hn::Mul(d, load(part + 16 * v));
      minimum[v] = hn::Mul(load(block + blocks.width + 16 * v), load(part + blocks.width + 16 * v));
    } else if constexpr (kLayout.scales) {
      scale[v] = hn::Mul(d, load(reinterpret_cast<const int8_t*>(part) + 16 * v));
    } else {
      scale[v] = d;
    }
  }
}

constexpr int64_t kPartsAhead = 4;

/// Of outputs o … and parts behind the p-th, which are read one after another.
template <DType kType>
HWY_INLINE void fetch_scales(const Blocks<kType>& blocks, int64_t p, int64_t o) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const std::byte* d =
      blocks.block_scales((p + std::max(kPartsAhead, kLayout.parts())) / kLayout.parts()) + 2 * o;
  for (int64_t line = 0; line < 2 * kUnit; line += kLine) {
    prefetch_first(d + line);
    if constexpr (kLayout.minima) prefetch_first(d + 2 * blocks.width + line);
  }
  if constexpr (kLayout.scales) {
    const std::byte* part = blocks.part_scales(p + kPartsAhead) + o;
    prefetch_first(part);
    if constexpr (kLayout.minima) prefetch_first(part + blocks.width);
  }
}

/// What is not zero of a row in one part, and where the weights lie that are fetched meanwhile.
template <int64_t kPart>
struct RowInputs {
  int64_t count;
  float sum;
  float values[kPart];
  const std::byte *weights[kPart], *next[kPart];
};

/// sums += weights of part p · row, for `outs` outputs. kCount: inputs of the row, or 0 for any number.
template <DType kType, int kCount, int64_t kPart>
HWY_INLINE void add_row(const Blocks<kType>& blocks, int64_t p, const RowInputs<kPart>& row, bool first_row,
                        int64_t outs, float* sums) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const int64_t count = kCount > 0 ? kCount : row.count;
  for (int64_t o = 0; o < outs; o += kUnit) {
    RWKVX_UNROLL for (int64_t k = 0; k < count; ++k) prefetch_first(row.next[k] + kLayout.input(o));
    if (first_row) fetch_scales(blocks, p, o);
    for (int64_t i = 0; i < 16; i += kLanes) {
      V scale[kVectors], minimum[kVectors], sum[kVectors];
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = zero();
      RWKVX_UNROLL for (int64_t k = 0; k < count; ++k) {
        V weight[kVectors];
        load_weights<kType>(row.weights[k], o, i, weight);
        const V value = set(row.values[k]);
        RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = hn::MulAdd(weight[v], value, sum[v]);
      }
      load_scales(blocks, p, o, i, scale, minimum);
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
        float* to = sums + o + 16 * v + i;
        V total = hn::MulAdd(sum[v], scale[v], load(to));
        if constexpr (kLayout.minima) total = hn::NegMulAdd(minimum[v], set(row.sum), total);
        store(total, to);
      }
    }
  }
}

/// A loop over few inputs is guessed wrongly too often: code of its own for each number of them.
template <DType kType, int64_t kPart>
void add_row_of_any(const Blocks<kType>& blocks, int64_t p, const RowInputs<kPart>& row, bool first_row,
                    int64_t outs, float* sums) {
  switch (row.count) {
    case 0:
      return;
    case 1:
      return add_row<kType, 1>(blocks, p, row, first_row, outs, sums);
    case 2:
      return add_row<kType, 2>(blocks, p, row, first_row, outs, sums);
    case 3:
      return add_row<kType, 3>(blocks, p, row, first_row, outs, sums);
    case 4:
      return add_row<kType, 4>(blocks, p, row, first_row, outs, sums);
    case 5:
      return add_row<kType, 5>(blocks, p, row, first_row, outs, sums);
    case 6:
      return add_row<kType, 6>(blocks, p, row, first_row, outs, sums);
    default:
      return add_row<kType, 0>(blocks, p, row, first_row, outs, sums);
  }
}

/// Each row gets its own inputs alone: of several rows' inputs, most are zero in one of them.
template <DType kType>
HWY_INLINE void add_listed(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const Blocks<kType> blocks(w, part.first);
  const int64_t bytes = kLayout.input(part.outs), ahead = kFirstCacheAhead / bytes;
  for (int64_t n = part.begin; n < std::min(part.begin + ahead, part.end); ++n) {
    for (int64_t at = 0; at < bytes; at += kLine) prefetch_first(blocks.input(x.indices[n]) + at);
  }
  const int64_t first = x.indices[part.begin] / kLayout.part;
  for (int64_t p = first - kPartsAhead; p < first; ++p) {
    for (int64_t o = 0; o < part.outs; o += kUnit) fetch_scales(blocks, p, o);
  }
  RowInputs<kLayout.part> row;
  for (int64_t n = part.begin, end; n < part.end; n = end) {
    const int64_t p = x.indices[n] / kLayout.part;
    end = n + 1;
    while (end < part.end && x.indices[end] / kLayout.part == p) ++end;
    for (int64_t r = 0; r < x.rows; ++r) {
      int64_t count = 0;
      float sum = 0;
      for (int64_t k = n; k < end; ++k) {  // without a branch, as in find_non_zero()
        const float value = x.values[k * x.rows + r];
        row.values[count] = value;
        row.weights[count] = blocks.input(x.indices[k]);
        row.next[count] = blocks.input(x.indices[std::min(k + ahead, x.count - 1)]);
        sum += value;
        count += value != 0;
      }
      row.count = count;
      row.sum = sum;
      add_row_of_any(blocks, p, row, r == 0, part.outs, sums + r * w.out);
    }
  }
}

void add_inputs_quantised(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  switch (w.type) {
    case DType::q4_0:
      return add_listed<DType::q4_0>(w, x, part, sums);
    case DType::q4_k:
      return add_listed<DType::q4_k>(w, x, part, sums);
    case DType::q5_k:
      return add_listed<DType::q5_k>(w, x, part, sums);
    case DType::q6_k:
      return add_listed<DType::q6_k>(w, x, part, sums);
    default:
      return add_listed<DType::q8_0>(w, x, part, sums);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(add_inputs_quantised);

void add_inputs_quantised(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  HWY_DYNAMIC_DISPATCH(add_inputs_quantised)(w, x, part, sums);
}

}  // namespace rwkvx::cpu
#endif
