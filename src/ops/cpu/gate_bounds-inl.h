/// Upper bounds of gates from sums of bytes, at a quarter of the products' cost and a quarter of the memory:
/// only chunks whose bound exceeds the least gate chosen so far need their gate computed.
///
/// With s = m + σ·i + ε and q = θ·u + δ, i and u integers of 8 and 7 (VNNI: 8) bits (Cauchy–Schwarz),
///   q·s ≤ q·m + θσ·Σ u i + ‖δ‖·‖s − m‖ + ‖ε‖·θ‖u‖.
/// m is the mean of all sums: keys of trained models have much in common, which no choice depends on.
#if defined(RWKVX_OPS_CPU_GATE_BOUNDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_GATE_BOUNDS_INL_H_
#undef RWKVX_OPS_CPU_GATE_BOUNDS_INL_H_
#else
#define RWKVX_OPS_CPU_GATE_BOUNDS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/attention_head-inl.h"
#include "ops/cpu/byte_products-inl.h"
#include "ops/cpu/packed_sums.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int kPackedTile = 4;     // sums of a register tile
constexpr int64_t kFours = N / 4;  // channels are multiplied by fours
// Queries are stored plus an offset: one side of the products is unsigned, and unless they are VNNI's those
// of two neighbours must stay below 2¹⁵.
#if HWY_TARGET == HWY_AVX3_DL
constexpr int32_t kQueryLevels = 127, kQueryOffset = 128;
#else
constexpr int32_t kQueryLevels = 63, kQueryOffset = 64;
#endif
constexpr float kLarge = 1e17f;  // what is larger has no bounds: no product below may overflow
constexpr float kMore = 1.001f;  // for the rounding of norms
/// A gate and q·m are within 64 · 2⁻²⁴ · ‖q‖ · ‖s‖ of what they would be exactly, ‖s‖ ≤ ‖s − m‖ + ‖m‖.
constexpr float kRounding = 1e-5f;

/// A query as integers.
struct PackedQuery {
  HWY_ALIGN uint8_t q[N];  // u + kQueryOffset
  float scale = 0;         // θ
  float norm = 0;          // θ‖u‖
  float error = 0;         // ‖δ‖
  float center = 0;        // q·m, and what rounding may add
};

/// A block of them.
struct PackedQueries {
  HWY_ALIGN uint8_t q[N * kQueries];  // [N / 4, query, 4]
  HWY_ALIGN float scales[kQueries];
  HWY_ALIGN float norms[kQueries];
  HWY_ALIGN float errors[kQueries];
  HWY_ALIGN float bars[kQueries];  // only bounds above matter: a gate less q·m
  float centers[kQueries];

  /// All gates matter to the query, or none.
  HWY_INLINE void put(const PackedQuery& one, int64_t lane, bool there) {
    for (int64_t four = 0; four < kFours; ++four) {
      std::memcpy(q + (four * kQueries + lane) * 4, one.q + four * 4, 4);
    }
    scales[lane] = one.scale;
    norms[lane] = one.norm;
    errors[lane] = one.error;
    centers[lane] = one.center;
    bars[lane] = there ? -INFINITY : INFINITY;
  }
  /// From now on only gates above `gate` matter to the query.
  HWY_INLINE void raise(int64_t lane, float gate) {
    bars[lane] = std::fmax(bars[lane], gate - centers[lane]);
  }
};

/// N numbers as integers: their scale, the numbers' norm, and that of the integers' errors.
struct ByteRow {
  float scale, norm, error;
  VI32 sum, squares;  // partial sums of the integers

  /// Integers between −levels and levels go to `bytes`. Norm or error of what is not finite is not, either.
  HWY_INLINE ByteRow(const V (&x)[kHeadVectors], int32_t levels, int8_t* bytes) {
    V most = zero();
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) most = hn::Max(most, hn::Abs(x[n]));
    const float largest = hn::GetLane(hn::MaxOfLanes(F(), most));
    // Squares of small numbers would be 0: let all of them be errors.
    const bool small = largest < 1e-15f;
    scale = small ? 0 : largest / static_cast<float>(levels);
    const V reciprocal = set(small ? 0 : static_cast<float>(levels) / largest);
    V sizes = zero(), errors = zero();
    sum = squares = hn::Zero(I32());
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
      const V scaled = hn::Mul(x[n], reciprocal);
      const auto integer = hn::NearestInt(scaled);
      store(scaled, bytes + n * kLanes);
      sum = hn::Add(sum, integer);
      squares = hn::Add(squares, hn::Mul(integer, integer));
      const V rest = hn::NegMulAdd(hn::ConvertTo(F(), integer), set(scale), x[n]);
      sizes = hn::MulAdd(x[n], x[n], sizes);
      errors = hn::MulAdd(rest, rest, errors);
    }
    norm = kMore * std::sqrt(sum_of_lanes(sizes)) + (small ? 8 * largest : 0);  // 8 = √N
    error = kMore * std::sqrt(sum_of_lanes(errors)) + (small ? 8 * largest : 0);
    if (!(largest < kLarge)) norm = error = NAN;
  }
};

HWY_NOINLINE void pack_sums(const KvChunks& kv, int64_t head, int64_t chunks, PackedSums& packed) {
  const int64_t parts = parts_of(kv), count = chunks * parts;
  if (count <= packed.count) return;
  if (const auto room = static_cast<size_t>(count + kPackedMore); room > packed.rows.size()) {
    const size_t more = std::max(room, packed.rows.size() + packed.rows.size() / 2);
    packed.totals.resize(more);
    packed.scales.resize(more);
    packed.norms.resize(more);
    packed.errors.resize(more);
    packed.rows.resize(more);  // the last: its size says how much room there is
  }
  if (count >= 2 * packed.in_mean) {
    packed.count = 0;
    packed.in_mean = count;
    V mean[kHeadVectors], square = zero();
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) mean[n] = zero();
    int64_t finite = 0;
    for (int64_t at = 0; at < count; ++at) {
      const float* sums = sums_of(kv, head, at / parts) + at % parts * N;
      V x[kHeadVectors], all = zero();
      RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
        x[n] = load(sums + n * kLanes);
        all = hn::MulAdd(x[n], zero(), all);  // 0, or NaN
      }
      if (!hn::AllTrue(F(), hn::Eq(all, zero()))) continue;
      ++finite;
      RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) mean[n] = hn::Add(mean[n], x[n]);
    }
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
      mean[n] = hn::Mul(mean[n], set(1.0f / static_cast<float>(std::max<int64_t>(1, finite))));
      store(mean[n], packed.mean + n * kLanes);
      square = hn::MulAdd(mean[n], mean[n], square);
    }
    packed.mean_norm = kMore * std::sqrt(sum_of_lanes(square));
    if (!(packed.mean_norm < kLarge)) packed.mean_norm = INFINITY;
  }
  for (int64_t at = packed.count; at < count; ++at) {
    const float* sums = sums_of(kv, head, at / parts) + at % parts * N;
    V x[kHeadVectors];
    RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
      x[n] = hn::Sub(load(sums + n * kLanes), load(packed.mean + n * kLanes));
    }
    const auto i = static_cast<size_t>(at);
    const ByteRow row(x, 127, packed.rows[i].i);
    packed.totals[i] = std::isfinite(row.norm) ? hn::GetLane(hn::SumOfLanes(I32(), row.sum)) : 0;
    packed.scales[i] = row.scale;
    packed.norms[i] = row.norm;
    packed.errors[i] = row.error;
  }
  packed.count = count;
}

HWY_INLINE void pack_query(const float* query, const PackedSums& sums, PackedQuery& packed) {
  V q[kHeadVectors], center = zero();
  RWKVX_UNROLL for (int64_t n = 0; n < kHeadVectors; ++n) {
    q[n] = load(query + n * kLanes);
    center = hn::MulAdd(q[n], load(sums.mean + n * kLanes), center);
  }
  const ByteRow row(q, kQueryLevels, reinterpret_cast<int8_t*>(packed.q));
  for (int64_t n = 0; n < N; n += 4 * kLanes) {
    hn::Store(hn::Add(hn::Load(U8(), packed.q + n), hn::Set(U8(), kQueryOffset)), U8(), packed.q + n);
  }
  const auto squares = static_cast<float>(hn::GetLane(hn::SumOfLanes(I32(), row.squares)));
  packed.scale = row.scale;
  packed.norm = kMore * row.scale * std::sqrt(squares);
  packed.error = row.error + kRounding * row.norm;
  packed.center = sum_of_lanes(center) + kRounding * row.norm * sums.mean_norm;
}

/// Upper bounds, less q·m, for what the vector `dots` holds: Σ u i.
HWY_INLINE V bound_of(VI32 dots, V row_scale, V row_norm, V row_error, V scale, V norm, V error) {
  V bound = hn::MulAdd(norm, row_error, set(1e-36f));  // for products too small for float32
  bound = hn::MulAdd(error, row_norm, bound);
  return hn::MulAdd(scale, hn::Mul(row_scale, hn::ConvertTo(F(), dots)), bound);
}

/// Calls candidate(row, lane) for packed sums below `end`, in rising order, whose bound is above the query's
/// bar or not a number. Only the first kV vectors of queries are there.
template <int kV, typename Candidate>
HWY_INLINE void for_each_above(const PackedSums& sums, int64_t end, PackedQueries& queries,
                               const Candidate& candidate) {
  for (int64_t first = 0; first < end; first += kPackedTile) {
    VI32 dots[kPackedTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kPackedTile; ++i) {
      const VI32 offset = hn::Set(I32(), -kQueryOffset * sums.totals[static_cast<size_t>(first + i)]);
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) dots[i][v] = offset;
    }
    const int8_t* rows = sums.rows[static_cast<size_t>(first)].i;
    RWKVX_UNROLL for (int64_t four = 0; four < kFours; ++four) {
      VU8 q[kV];
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        q[v] = hn::Load(U8(), queries.q + (four * kQueries + v * kLanes) * 4);
      }
      RWKVX_UNROLL for (int i = 0; i < kPackedTile; ++i) {
        const VI8 x = broadcast(rows + i * N + 4 * four);
        RWKVX_UNROLL for (int v = 0; v < kV; ++v) dots[i][v] = dot(dots[i][v], q[v], x);
      }
    }
    hn::Mask<F> above[kPackedTile][kV];
    auto any = hn::MaskFromVec(zero());
    RWKVX_UNROLL for (int i = 0; i < kPackedTile; ++i) {
      const auto row = static_cast<size_t>(first + i);
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        const V bound = bound_of(dots[i][v], set(sums.scales[row]), set(sums.norms[row]),
                                 set(sums.errors[row]), load(queries.scales + v * kLanes),
                                 load(queries.norms + v * kLanes), load(queries.errors + v * kLanes));
        above[i][v] = hn::Not(hn::Le(bound, load(queries.bars + v * kLanes)));
        any = hn::Or(any, above[i][v]);
      }
    }
    if (HWY_LIKELY(hn::AllFalse(F(), any))) continue;
    uint8_t bits[kPackedTile][kV][8] = {};
    RWKVX_UNROLL for (int i = 0; i < kPackedTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) hn::StoreMaskBits(F(), above[i][v], bits[i][v]);
    }
    for (int i = 0; i < std::min<int64_t>(kPackedTile, end - first); ++i) {
      for (int v = 0; v < kV; ++v) {
        uint32_t left = bits[i][v][0] | uint32_t{bits[i][v][1]} << 8;
        for (; left != 0; left &= left - 1) candidate(first + i, v * kLanes + __builtin_ctz(left));
      }
    }
  }
}

/// The same for one query, with the sums in the lanes: calls candidate(row). `bar` may rise meanwhile.
template <typename Candidate>
HWY_INLINE void for_each_above(const PackedSums& sums, int64_t end, const PackedQuery& query,
                               const float& bar, const Candidate& candidate) {
  HWY_ALIGN int32_t dots[kLanes];
  for (int64_t first = 0; first < end; first += kLanes) {
    const int64_t here = std::min(kLanes, end - first);
    for (int64_t i = 0; i < here; ++i) {
      const int8_t* row = sums.rows[static_cast<size_t>(first + i)].i;
      auto sum = hn::Zero(I32());
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += 4 * kLanes) {
        sum = dot(sum, hn::Load(U8(), query.q + n), hn::Load(I8(), row + n));
      }
      dots[i] = hn::GetLane(hn::SumOfLanes(I32(), sum));
    }
    std::fill(dots + here, dots + kLanes, 0);
    const auto row = static_cast<size_t>(first);
    const auto offsets = hn::Mul(hn::LoadU(I32(), sums.totals.data() + row), hn::Set(I32(), kQueryOffset));
    const V bound = bound_of(hn::Sub(hn::Load(I32(), dots), offsets), load(sums.scales.data() + row),
                             load(sums.norms.data() + row), load(sums.errors.data() + row), set(query.scale),
                             set(query.norm), set(query.error));
    const auto above = hn::Not(hn::Le(bound, set(bar)));
    if (HWY_LIKELY(hn::AllFalse(F(), above))) continue;
    uint8_t bits[8] = {};
    hn::StoreMaskBits(F(), above, bits);
    uint32_t left = (bits[0] | uint32_t{bits[1]} << 8) & ((uint32_t{1} << here) - 1);
    for (; left != 0; left &= left - 1) candidate(first + __builtin_ctz(left));
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
