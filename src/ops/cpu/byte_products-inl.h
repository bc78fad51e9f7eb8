/// Sums of products of bytes, four to a lane, in 32 bits.
#if defined(RWKVX_OPS_CPU_BYTE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_BYTE_PRODUCTS_INL_H_
#undef RWKVX_OPS_CPU_BYTE_PRODUCTS_INL_H_
#else
#define RWKVX_OPS_CPU_BYTE_PRODUCTS_INL_H_
#endif

#include <cstring>

#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

using I32 = hn::Rebind<int32_t, F>;
using U8 = hn::Repartition<uint8_t, F>;
using I8 = hn::Repartition<int8_t, F>;
using VI32 = hn::Vec<I32>;
using VU8 = hn::Vec<U8>;
using VI8 = hn::Vec<I8>;

/// The four at x for every lane.
HWY_INLINE VI8 broadcast(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return hn::BitCast(I8(), hn::Set(I32(), four));
}

/// acc[lane] += Σ w · x of the lane's four bytes, w without and x with a sign. Unless they are VNNI's, the
/// products of two neighbours must add up to less than 2^15.
HWY_INLINE VI32 dot(VI32 acc, VU8 w, VI8 x) {
#if HWY_TARGET == HWY_AVX3_DL
  // Highway 1.0.3 does not tell the compiler that this target has AVX512_VNNI.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(w.raw), "v"(x.raw));
  return acc;
#elif HWY_TARGET == HWY_AVX3
  const auto pairs = _mm512_maddubs_epi16(w.raw, x.raw);
  return hn::Add(acc, VI32{_mm512_madd_epi16(pairs, _mm512_set1_epi16(1))});
#elif HWY_TARGET == HWY_AVX2
  const auto pairs = _mm256_maddubs_epi16(w.raw, x.raw);
  return hn::Add(acc, VI32{_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))});
#elif HWY_TARGET == HWY_SSE4
  const auto pairs = _mm_maddubs_epi16(w.raw, x.raw);
  return hn::Add(acc, VI32{_mm_madd_epi16(pairs, _mm_set1_epi16(1))});
#else
  const I32 i32;
  const auto bytes = hn::BitCast(i32, w), more = hn::BitCast(i32, x), byte = hn::Set(i32, 255);
  acc = hn::Add(acc, hn::Mul(hn::And(bytes, byte), hn::ShiftRight<24>(hn::ShiftLeft<24>(more))));
  acc = hn::Add(
      acc, hn::Mul(hn::And(hn::ShiftRight<8>(bytes), byte), hn::ShiftRight<24>(hn::ShiftLeft<16>(more))));
  acc = hn::Add(
      acc, hn::Mul(hn::And(hn::ShiftRight<16>(bytes), byte), hn::ShiftRight<24>(hn::ShiftLeft<8>(more))));
  return hn::Add(acc, hn::Mul(hn::And(hn::ShiftRight<24>(bytes), byte), hn::ShiftRight<24>(more)));
#endif
}

/// The same with the four at x for every lane.
HWY_INLINE VI32 dot(VI32 acc, VU8 w, const int8_t* x) {
#if HWY_TARGET == HWY_AVX3_DL
  using Four [[gnu::may_alias]] = int32_t;
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.raw) : "v"(w.raw), "m"(*reinterpret_cast<const Four*>(x)));
  return acc;
#else
  return dot(acc, w, broadcast(x));
#endif
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
