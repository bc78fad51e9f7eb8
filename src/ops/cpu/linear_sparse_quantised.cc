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
constexpr int64_t kLine = 64;  // bytes

/// Where things lie in a tile.
template <DType kType>
struct Tile {
  static constexpr BlockLayout kLayout = block_layout(kType);
  const std::byte* data;
  int64_t width;

  const std::byte* block(int64_t b) const { return data + b * kLayout.whole_block(width); }
  /// Parts are counted over all blocks.
  const std::byte* part(int64_t p) const {
    return block(p / kLayout.parts()) + p % kLayout.parts() * kLayout.whole_part(width);
  }
  const std::byte* input(int64_t i) const {
    return part(i / kLayout.part) + i % kLayout.part * kLayout.input(width);
  }
  const std::byte* part_scales(int64_t p) const { return part(p) + kLayout.part * kLayout.input(width); }
  const std::byte* block_scales(int64_t b) const {
    return block(b) + kLayout.parts() * kLayout.whole_part(width);
  }
};

/// Fetches what the inputs of a list need, in their order, ahead of their use. A few lines at a time, between
/// products: many at once would be waited for, and nothing would be on its way during the products.
template <DType kType>
class Fetcher {
 public:
  Fetcher(const Tile<kType>& tile, const NonZero& x) : tile_(tile), x_(x) {}

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
      add(tile_.block_scales(block_), kLayout.block_scales(tile_.width));
    }
    if (kLayout.scales && i / kLayout.part != part_) {
      part_ = i / kLayout.part;
      add(tile_.part_scales(part_), kLayout.part_scales(tile_.width));
    }
    add(tile_.input(i), kLayout.input(tile_.width));
  }
  void add(const std::byte* from, int64_t bytes) {
    ranges_[pending_++] = {from - reinterpret_cast<uintptr_t>(from) % kLine, from + bytes};
  }

  static constexpr BlockLayout kLayout = block_layout(kType);
  const Tile<kType>& tile_;
  const NonZero& x_;
  int64_t next_ = 0;                // in the list
  int64_t block_ = -1, part_ = -1;  // whose scales were fetched
  Range ranges_[3];
  int64_t pending_ = 0;  // of them
};

constexpr int kVectors = 4;  // that are computed together, one for each nibble of a word

/// Weights of one input, of outputs o + 16 v + i … for each v; o begins a unit.
template <DType kType>
HWY_INLINE void load_weights(const std::byte* input, int64_t o, int64_t i, V* to) {
  constexpr BlockLayout kLayout = block_layout(kType);
  if constexpr (kLayout.nibbles) {
    const hn::Rebind<uint16_t, F> u16;
    auto words = hn::PromoteTo(I32(), hn::LoadU(u16, reinterpret_cast<const uint16_t*>(input + o / 2) + i));
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      const auto q = hn::And(words, hn::Set(I32(), 15));
      to[v] = hn::ConvertTo(F(), kLayout.offset ? hn::Sub(q, hn::Set(I32(), kLayout.offset)) : q);
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
HWY_INLINE void load_scales(const Tile<kType>& tile, int64_t p, int64_t o, int64_t i, V* scale, V* minimum) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const auto* part = reinterpret_cast<const uint8_t*>(tile.part_scales(p)) + o + i;
  const auto* block = reinterpret_cast<const Float16*>(tile.block_scales(p / kLayout.parts())) + o + i;
  RWKVX_UNROLL for (int64_t v = 0; v < kVectors; ++v) {
    const V d = load(block + 16 * v);
    if constexpr (kLayout.minima) {
      scale[v] = hn::Mul(d, load(part + 16 * v));
      minimum[v] = hn::Mul(load(block + tile.width + 16 * v), load(part + tile.width + 16 * v));
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
HWY_INLINE void part_rows(const Tile<kType>& tile, const NonZero& x, int64_t n, int64_t count,
                          RowInputs<kPart>* rows) {
  for (int64_t r = 0; r < x.rows; ++r) {
    rows[r].count = 0;
    rows[r].sum = 0;
  }
  for (int64_t k = n; k < n + count; ++k) {
    const std::byte* weights = tile.input(x.indices[k]);
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

/// sums += weights of part p · rows; fetch() is called for every unit of outputs.
template <DType kType, int64_t kPart, typename Fetch>
HWY_INLINE void add_part(const Tile<kType>& tile, int64_t p, const RowInputs<kPart>* rows, int64_t row_count,
                         float* sums, Fetch fetch) {
  constexpr BlockLayout kLayout = block_layout(kType);
  for (int64_t o = 0; o < tile.width; o += kUnit) {
    fetch();
    for (int64_t i = 0; i < 16; i += kLanes) {
      V scale[kVectors], minimum[kVectors];
      load_scales(tile, p, o, i, scale, minimum);
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
          float* to = sums + r * kMostTile + o + 16 * v + i;
          V total = hn::MulAdd(sum[v], scale[v], load(to));
          if constexpr (kLayout.minima) total = hn::NegMulAdd(minimum[v], set(row.sum), total);
          store(total, to);
        }
      }
    }
  }
}

template <DType kType>
HWY_INLINE void sum_tile(const InputMajor& w, int64_t t, const NonZero& x, float* sums) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const Tile<kType> tile{w.at(t), w.width(t)};
  const int64_t scales = kLayout.part_scales(kUnit) + kLayout.block_scales(kUnit) / kLayout.parts();
  const int64_t ahead = kFirstCacheAhead / kLayout.input(tile.width);
  RowInputs<kLayout.part> rows[kFewRows];
  Fetcher<kType> fetcher(tile, x);
  fetcher.fetch(kFirstCacheAhead / kLine, ahead);
  for (int64_t n = 0; n < x.count;) {
    const int64_t p = x.indices[n] / kLayout.part;
    int64_t count = 1;  // inputs of this part
    while (n + count < x.count && x.indices[n + count] / kLayout.part == p) ++count;
    // What this part took, and one more to get ahead.
    const int64_t lines = (count * kLayout.input(kUnit) + scales) / kLine + 1;
    part_rows(tile, x, n, count, rows);
    add_part(tile, p, rows, x.rows, sums, [&] { fetcher.fetch(lines, n + count + ahead); });
    n += count;
  }
}

void sum_inputs_quantised(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  for (int64_t r = 0; r < x.rows; ++r) std::fill_n(sums + r * kMostTile, w.width(tile), 0.0f);
  switch (w.type) {
    case DType::q4_0:
      return sum_tile<DType::q4_0>(w, tile, x, sums);
    case DType::q4_k:
      return sum_tile<DType::q4_k>(w, tile, x, sums);
    case DType::q5_k:
      return sum_tile<DType::q5_k>(w, tile, x, sums);
    case DType::q6_k:
      return sum_tile<DType::q6_k>(w, tile, x, sums);
    default:
      return sum_tile<DType::q8_0>(w, tile, x, sums);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(sum_inputs_quantised);

void sum_inputs_quantised(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  HWY_DYNAMIC_DISPATCH(sum_inputs_quantised)(w, tile, x, sums);
}

}  // namespace rwkvx::cpu
#endif
