/// The recurrence of one head by tiles (tiles.h), 16 tokens at a time. With D the product of a group's
/// decays up to a token, D' that up to the token before, and S the state before the group:
///
///   ã = D' ⊙ a,  r̃ = D ⊙ r,  b̃ = b ⊘ D,  k̃ = k ⊘ D
///
///   u = S ã + Σ of earlier tokens (u (b̃·ã) + v (k̃·ã))
///
///   y = S r̃ + Σ up to the token (u (b̃·r̃) + v (k̃·r̃))
///
///   S ← (S + Σ (u b̃ᵀ + v k̃ᵀ)) diag(D of the last)
///
/// which are products of matrices but for u, one of which needs the earlier ones. RWKV-7's decays are 0.545
/// or more, so that 1 / D stays below 2^15. What products take is rounded to bfloat16; u and the state stay
/// in float32.
#if defined(RWKVX_OPS_CPU_WKV7_MATRIX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_WKV7_MATRIX_INL_H_
#undef RWKVX_OPS_CPU_WKV7_MATRIX_INL_H_
#else
#define RWKVX_OPS_CPU_WKV7_MATRIX_INL_H_
#endif

#include <algorithm>

#include "ops/cpu/tile_pairs-inl.h"
#include "ops/cpu/tiles.h"
#include "ops/cpu/wkv7-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Tokens of a group: a tile's rows.
constexpr int64_t kGroup = kTileRows;

/// What a group's products read and write. Channels of a depth of 32 are in pairs (c, c + 16), tokens of one
/// in pairs (b̃ or u, k̃ or v).
struct Wkv7Tiles {
  alignas(64) BFloat16 read[4 * kTileElements];     // as TileStrip::a: [2 depths, ã and r̃]
  alignas(64) BFloat16 written[4 * kTileElements];  // as TileStrip::b: [2 depths, b̃ᵀ and k̃ᵀ]
  alignas(64) BFloat16 columns[4 * kTileElements];  // as two TileStrip::a: 16 channels after 16, b̃ and k̃
  alignas(64) BFloat16 state[8 * kTileElements];    // as TileStrip::b: the state, rounded
  alignas(64) BFloat16 news[4 * kTileElements];     // as TileStrip::b: u and v
  alignas(64) BFloat16 factors[2 * kTileElements];  // as TileStrip::a: k̃·ã; b̃·r̃ and k̃·r̃
  alignas(64) uint32_t pairs[2 * kGroup * N / 2];   // b̃ and k̃ before they are turned
  alignas(64) float products[2 * kGroup * 2 * kGroup];  // [ã and r̃, b̃ and k̃]
  alignas(64) float results[2 * kGroup * N];            // [u and y]
  alignas(64) float decays[N];                          // D of the last token
};

/// The state, [N, N] with the key dimension in rows, times `decays` of its rows, and as tiles.
HWY_NOINLINE inline void decay_and_round(float* state, Wkv7Tiles& tiles) {
  for (int64_t depth = 0; depth < 2; ++depth) {
    for (int64_t c = 0; c < kTileRows; ++c) {
      const int64_t channel = depth * kTileDepth + c;
      float *first = state + channel * N, *second = first + kTileRows * N;
      const V decay = set(tiles.decays[channel]), other_decay = set(tiles.decays[channel + kTileRows]);
      RWKVX_UNROLL for (int64_t panel = 0; panel < 4; ++panel) {
        const V x = hn::Mul(load(first + panel * kTileRows), decay);
        const V y = hn::Mul(load(second + panel * kTileRows), other_decay);
        store(x, first + panel * kTileRows);
        store(y, second + panel * kTileRows);
        const int64_t at = ((panel / 2 * 2 + depth) * 2 + panel % 2) * kTileElements + c * kTileDepth;
        store_pairs(x, y, tiles.state + at);
      }
    }
  }
}

/// ã, r̃, b̃ and k̃ of a group, whose operands are [16, N].
HWY_NOINLINE inline void scale_operands(const Head& rows, Wkv7Tiles& tiles) {
  for (int64_t depth = 0; depth < 2; ++depth) {
    V decay[2] = {set(1.0f), set(1.0f)};
    for (int64_t t = 0; t < kGroup; ++t) {
      V a[2], r[2], b[2], k[2];
      RWKVX_UNROLL for (int i = 0; i < 2; ++i) {
        const int64_t at = t * N + depth * kTileDepth + i * kTileRows;
        a[i] = hn::Mul(load(rows.a + at), decay[i]);
        decay[i] = hn::Mul(load(rows.w + at), decay[i]);
        r[i] = hn::Mul(load(rows.r + at), decay[i]);
        const V inverse = hn::ApproximateReciprocal(decay[i]);  // good to 2^-12 and more; rounded to 2^-9
        b[i] = hn::Mul(load(rows.b + at), inverse);
        k[i] = hn::Mul(load(rows.k + at), inverse);
      }
      BFloat16* read = tiles.read + depth * 2 * kTileElements + t * kTileDepth;
      store_pairs(a[0], a[1], read);
      store_pairs(r[0], r[1], read + kTileElements);
      uint32_t* pairs = tiles.pairs + t * N / 2 + depth * kTileRows;
      store_pairs(b[0], b[1], reinterpret_cast<BFloat16*>(pairs));
      store_pairs(k[0], k[1], reinterpret_cast<BFloat16*>(pairs + kGroup * N / 2));
    }
    RWKVX_UNROLL for (int i = 0; i < 2; ++i) {
      store(decay[i], tiles.decays + depth * kTileDepth + i * kTileRows);
    }
  }
}

/// b̃ and k̃ with channels in rows: pairs of channels for products with ã and r̃, and of b̃ and k̃ for the
/// state's update.
HWY_NOINLINE inline void turn_written(Wkv7Tiles& tiles) {
  for (int64_t depth = 0; depth < 2; ++depth) {
    auto* written = reinterpret_cast<uint32_t*>(tiles.written + depth * 2 * kTileElements);
    for (int64_t i = 0; i < 2; ++i) {
      const uint32_t* pairs = tiles.pairs + i * kGroup * N / 2 + depth * kTileRows;
      transpose(reinterpret_cast<const float*>(pairs), N / 2, kGroup, kTileRows,
                reinterpret_cast<float*>(written + i * kTileElements / 2), kTileRows);
    }
    BFloat16* columns = tiles.columns + depth * 2 * kTileElements;
    for (int64_t c = 0; c < kTileRows; ++c) {
      const auto b = hn::LoadU(U32(), written + c * kTileRows);
      const auto k = hn::LoadU(U32(), written + kTileElements / 2 + c * kTileRows);
      store_words(upper_halves(hn::ShiftLeft<16>(b), hn::ShiftLeft<16>(k)), columns + c * kTileDepth);
      store_words(upper_halves(b, k), columns + kTileElements + c * kTileDepth);
    }
  }
}

/// Factors of earlier tokens for u, and of those up to the token for y; u = 0, v in `news`.
HWY_NOINLINE inline void mask_products(const float* v, Wkv7Tiles& tiles) {
  alignas(64) static constexpr float kNumbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const V earlier = load(kNumbers);
  for (int64_t t = 0; t < kGroup; ++t) {
    const V token = set(static_cast<float>(t));
    const float *for_u = tiles.products + t * 2 * kGroup, *for_y = for_u + kGroup * 2 * kGroup;
    store_pairs(zero(), hn::IfThenElseZero(hn::Lt(earlier, token), load(for_u + kGroup)),
                tiles.factors + t * kTileDepth);
    const auto seen = hn::Le(earlier, token);
    store_pairs(hn::IfThenElseZero(seen, load(for_y)), hn::IfThenElseZero(seen, load(for_y + kGroup)),
                tiles.factors + kTileElements + t * kTileDepth);
    RWKVX_UNROLL for (int64_t panel = 0; panel < 4; ++panel) {
      store_pairs(zero(), load(v + t * N + panel * kTileRows),
                  tiles.news + panel * kTileElements + t * kTileDepth);
    }
  }
}

/// u of each token, of which `results` has all but what comes from earlier u.
HWY_NOINLINE inline void solve(const float* v, Wkv7Tiles& tiles) {
  for (int64_t panel = 0; panel < 4; ++panel) {
    V u[kGroup];
    RWKVX_UNROLL for (int64_t t = 0; t < kGroup; ++t) u[t] = load(tiles.results + t * N + panel * kTileRows);
    RWKVX_UNROLL for (int64_t s = 0; s < kGroup; ++s) {
      store_pairs(u[s], load(v + s * N + panel * kTileRows),
                  tiles.news + panel * kTileElements + s * kTileDepth);
      RWKVX_UNROLL for (int64_t t = s + 1; t < kGroup; ++t) {
        u[t] = hn::MulAdd(set(tiles.products[t * 2 * kGroup + s]), u[s], u[t]);
      }
    }
  }
}

/// Before the first group, and whenever something else has changed the state.
inline void take_state(float* state, Wkv7Tiles& tiles) {
  std::fill(std::begin(tiles.decays), std::end(tiles.decays), 1.0f);
  decay_and_round(state, tiles);
}

/// The 16 tokens of `rows` change the state, [N, N] with the key dimension in rows, that `tiles` has taken;
/// y [16, N].
inline const float* step_tiles(const Head& rows, const TileUnit& unit, float* state, Wkv7Tiles& tiles) {
  constexpr int64_t kWide = 2 * kGroup;
  const auto multiply = [&](const BFloat16* a, int64_t row_tiles, const BFloat16* b, int64_t panels,
                            int64_t steps, float* c, int64_t stride, bool add) {
    unit.multiply({a, row_tiles, b, panels, steps, c, stride, add, true});
  };
  scale_operands(rows, tiles);
  turn_written(tiles);
  float* const y = tiles.results + kGroup * N;
  multiply(tiles.read, 2, tiles.written, 2, 2, tiles.products, kWide, false);
  multiply(tiles.read, 2, tiles.state, 4, 2, tiles.results, N, false);
  mask_products(rows.v, tiles);
  multiply(tiles.factors, 1, tiles.news, 4, 1, tiles.results, N, true);
  solve(rows.v, tiles);
  multiply(tiles.factors + kTileElements, 1, tiles.news, 4, 1, y, N, true);
  multiply(tiles.columns, 2, tiles.news, 4, 1, state, N, true);
  multiply(tiles.columns + 2 * kTileElements, 2, tiles.news, 4, 1, state + kTileDepth * N, N, true);
  decay_and_round(state, tiles);
  return y;
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
