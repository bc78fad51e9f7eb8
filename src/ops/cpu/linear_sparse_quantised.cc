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

/// Fetches what the inputs of a list need, in their order, ahead of their use. A few lines at a time, between
/// products: many at once would be waited for, and nothing would be on its way during the products.
template <DType kType>
class Fetcher {
 public:
  /// From the list's next-th input on, of `outs` outputs.
  Fetcher(const Blocks<kType>& blocks, const NonZero& x, int64_t next, int64_t outs)
      : blocks_(blocks), x_(x), next_(next), outs_(outs) {}

  /// `lines` more, but none of the list's inputs from `end` on.
  HWY_INLINE void fetch(int64_t lines, int64_t end) {
    for (; lines > 0; --lines) {
      if (pending_ == 0) {
        if (next_ >= std::min(end, x_.count)) return;
        begin_input(x_.indices[next_++]);
      }
      Range& range = ranges_[pending_ - 1];
      prefetch(range.from);
      range.from += kLine;
      pending_ -= range.from >= range.end;
    }
  }

 private:
  struct Range {
    const std::byte *from, *end;
  };
  void begin_input(int64_t i) {
    if (i / kLayout.block != block_) {
      block_ = i / kLayout.block;
      const std::byte* d = blocks_.block_scales(block_);
      add(d, 2 * outs_);
      if (kLayout.minima) add(d + 2 * blocks_.width, 2 * outs_);
    }
    if (kLayout.scales && i / kLayout.part != part_) {
      part_ = i / kLayout.part;
      const std::byte* scales = blocks_.part_scales(part_);
      add(scales, outs_);
      if (kLayout.minima) add(scales + blocks_.width, outs_);
    }
    add(blocks_.input(i), kLayout.input(outs_));
  }
  void add(const std::byte* from, int64_t bytes) {
    ranges_[pending_++] = {from - reinterpret_cast<uintptr_t>(from) % kLine, from + bytes};
  }

  static constexpr BlockLayout kLayout = block_layout(kType);
  const Blocks<kType>& blocks_;
  const NonZero& x_;
  int64_t next_, outs_;
  int64_t block_ = -1, part_ = -1;  // whose scales were fetched
  Range ranges_[5];
  int64_t pending_ = 0;  // of them
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

/// What a row has in one part of the inputs that is not zero.
template <int64_t kPart>
struct RowInputs {
  int64_t count;
  float sum;
  float values[kPart];
  const std::byte* weights[kPart];
};

/// Of `count` inputs of the list from the n-th on. Each row gets its own alone: of several rows' inputs, most
/// are zero in one of them.
template <DType kType, int64_t kPart>
HWY_INLINE void part_rows(const Blocks<kType>& blocks, const NonZero& x, int64_t n, int64_t count,
                          RowInputs<kPart>* rows) {
  for (int64_t r = 0; r < x.rows; ++r) {
    rows[r].count = 0;
    rows[r].sum = 0;
  }
  for (int64_t k = n; k < n + count; ++k) {
    const std::byte* weights = blocks.input(x.indices[k]);
    for (int64_t r = 0; r < x.rows; ++r) {  // without a branch, as in find_non_zero()
      RowInputs<kPart>& row = rows[r];
      const float value = x.values[k * x.rows + r];
      row.values[row.count] = value;
      row.weights[row.count] = weights;
      row.sum += value;
      row.count += value != 0;
    }
  }
}

/// sums += weights of part p · rows, for `outs` outputs; fetch() is called for every unit of them.
template <DType kType, int64_t kPart, typename Fetch>
HWY_INLINE void add_part(const Blocks<kType>& blocks, int64_t p, const RowInputs<kPart>* rows,
                         int64_t row_count, int64_t outs, float* sums, Fetch fetch) {
  constexpr BlockLayout kLayout = block_layout(kType);
  for (int64_t o = 0; o < outs; o += kUnit) {
    fetch();
    for (int64_t i = 0; i < 16; i += kLanes) {
      V scale[kVectors], minimum[kVectors];
      load_scales(blocks, p, o, i, scale, minimum);
      for (int64_t r = 0; r < row_count; ++r) {
        const RowInputs<kPart>& row = rows[r];
        if (row.count == 0) continue;
        V sum[kVectors];
        RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = zero();
        for (int64_t k = 0; k < row.count; ++k) {
          V weight[kVectors];
          load_weights<kType>(row.weights[k], o, i, weight);
          const V value = set(row.values[k]);
          RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = hn::MulAdd(weight[v], value, sum[v]);
        }
        RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
          float* to = sums + r * blocks.width + o + 16 * v + i;
          V total = hn::MulAdd(sum[v], scale[v], load(to));
          if constexpr (kLayout.minima) total = hn::NegMulAdd(minimum[v], set(row.sum), total);
          store(total, to);
        }
      }
    }
  }
}

template <DType kType>
HWY_INLINE void add_listed(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const Blocks<kType> blocks(w, part.first);
  const int64_t scales = kLayout.part_scales(kUnit) + kLayout.block_scales(kUnit) / kLayout.parts();
  const int64_t ahead = kFirstCacheAhead / kLayout.input(part.outs);
  RowInputs<kLayout.part> rows[kFewRows];
  Fetcher<kType> fetcher(blocks, x, part.begin, part.outs);
  fetcher.fetch(kFirstCacheAhead / kLine, part.begin + ahead);
  for (int64_t n = part.begin; n < part.end;) {
    const int64_t p = x.indices[n] / kLayout.part;
    int64_t count = 1;  // inputs of this part
    while (n + count < part.end && x.indices[n + count] / kLayout.part == p) ++count;
    // What this part took, and one more to get ahead.
    const int64_t lines = (count * kLayout.input(kUnit) + scales) / kLine + 1;
    part_rows(blocks, x, n, count, rows);
    add_part(blocks, p, rows, x.rows, part.outs, sums, [&] { fetcher.fetch(lines, n + count + ahead); });
    n += count;
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
