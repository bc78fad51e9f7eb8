/// Vectors of float32 as the pairs of bfloat16 that tiles (tiles.h) take.
#if defined(RWKVX_OPS_CPU_TILE_PAIRS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_TILE_PAIRS_INL_H_
#undef RWKVX_OPS_CPU_TILE_PAIRS_INL_H_
#else
#define RWKVX_OPS_CPU_TILE_PAIRS_INL_H_
#endif

#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// Tiles are as wide as vectors of 16 lanes.
constexpr bool kHasTiles = kLanes == 16;

using U32 = hn::Rebind<uint32_t, F>;

/// The upper halves of a's and b's lanes, side by side.
HWY_INLINE hn::Vec<U32> upper_halves(hn::Vec<U32> a, hn::Vec<U32> b) {
  return hn::Or(hn::ShiftRight<16>(a), hn::And(b, hn::Set(U32(), 0xffff0000)));
}
HWY_INLINE void store_words(hn::Vec<U32> words, BFloat16* to) {
  hn::StoreU(words, U32(), reinterpret_cast<uint32_t*>(to));
}

/// a and b, rounded to bfloat16, as pairs. Finite.
HWY_INLINE void store_pairs(V a, V b, BFloat16* to) {
  const auto half = hn::Set(U32(), 0x8000);
  store_words(upper_halves(hn::Add(hn::BitCast(U32(), a), half), hn::Add(hn::BitCast(U32(), b), half)), to);
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
