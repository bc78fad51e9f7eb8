/// What the kernels share, compiled once for each instruction set: loads and stores of every storage type as
/// float32 vectors, and exp, sigmoid and tanh. Arithmetic is float32 throughout.
#if defined(RWKVX_OPS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_SIMD_INL_H_
#undef RWKVX_OPS_CPU_SIMD_INL_H_
#else
#define RWKVX_OPS_CPU_SIMD_INL_H_
#endif

#include <cmath>

#include "base/assert.h"
#include "hwy/highway.h"
#include "ops/ops.h"
#include "tensor/half.h"

// Before loops over arrays of vectors: only when all of them are unrolled do the arrays live in registers.
// Sanitizers, which check each access, would multiply the code for nothing.
#ifndef RWKVX_UNROLL
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RWKVX_UNROLL
#else
#define RWKVX_UNROLL _Pragma("GCC unroll 64")
#endif
#endif

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;  // N = 64 is a multiple of its lanes
using V = hn::Vec<F>;
inline constexpr int64_t kLanes = HWY_MAX_BYTES / sizeof(float);
static_assert(kHeadSize % kLanes == 0, "a head is whole vectors");
inline constexpr int64_t kHeadVectors = kHeadSize / kLanes;

HWY_INLINE V load(const float* p) { return hn::LoadU(F(), p); }
HWY_INLINE V load(const BFloat16* p) {
  const hn::Rebind<uint16_t, F> u16;
  const hn::Rebind<uint32_t, F> u32;
  const auto bits = hn::LoadU(u16, reinterpret_cast<const uint16_t*>(p));
  return hn::BitCast(F(), hn::ShiftLeft<16>(hn::PromoteTo(u32, bits)));
}
HWY_INLINE V load(const Float16* p) {
#if HWY_TARGET == HWY_SSE4
  // Without instructions for it, and Highway's replacement makes numbers of infinity and NaN. The exponent is
  // moved up by a multiplication, which makes subnormal numbers right too.
  const hn::Rebind<uint16_t, F> u16;
  const hn::Rebind<uint32_t, F> u32;
  const hn::Rebind<int32_t, F> i32;
  const auto bits = hn::PromoteTo(u32, hn::LoadU(u16, reinterpret_cast<const uint16_t*>(p)));
  const auto magnitude = hn::And(bits, hn::Set(u32, 0x7fff));
  const auto sign = hn::ShiftLeft<16>(hn::Sub(bits, magnitude));
  const auto shifted = hn::ShiftLeft<13>(magnitude);
  const auto number = hn::BitCast(u32, hn::Mul(hn::BitCast(F(), shifted), hn::Set(F(), 0x1p112f)));
  const auto infinite = hn::Gt(hn::BitCast(i32, magnitude), hn::Set(i32, 0x7bff));
  const auto other = hn::Or(shifted, hn::Set(u32, 0x7f800000));
  return hn::BitCast(F(), hn::Or(sign, hn::IfThenElse(hn::RebindMask(u32, infinite), other, number)));
#else
  const hn::Rebind<hwy::float16_t, F> f16;
  return hn::PromoteTo(F(), hn::LoadU(f16, reinterpret_cast<const hwy::float16_t*>(p)));
#endif
}

HWY_INLINE V load(const int8_t* p) {
  const hn::Rebind<int8_t, F> i8;
  const hn::Rebind<int32_t, F> i32;
  return hn::ConvertTo(F(), hn::PromoteTo(i32, hn::LoadU(i8, p)));
}
HWY_INLINE V load(const uint8_t* p) {
  const hn::Rebind<uint8_t, F> u8;
  const hn::Rebind<int32_t, F> i32;
  return hn::ConvertTo(F(), hn::PromoteTo(i32, hn::LoadU(u8, p)));
}

HWY_INLINE void store(V v, float* p) { hn::StoreU(v, F(), p); }
/// Rounds to nearest even; a NaN stays one.
HWY_INLINE void store(V v, BFloat16* p) {
  const hn::Rebind<uint32_t, F> u32;
  const hn::Rebind<int32_t, F> i32;
  const hn::Rebind<uint16_t, F> u16;
  const auto bits = hn::BitCast(u32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(u32, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(u32, 0x7fff)));
  const auto quiet = hn::Or(bits, hn::Set(u32, 0x400000));
  const auto kept = hn::IfThenElse(hn::RebindMask(u32, hn::IsNaN(v)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(u16, hn::BitCast(i32, hn::ShiftRight<16>(kept))), u16,
             reinterpret_cast<uint16_t*>(p));
}

/// The same in less than half the instructions, ties away from zero, and not for NaNs whose bits below
/// bfloat16's are all ones, which no arithmetic makes.
HWY_INLINE void store_plainly(V v, BFloat16* p) {
  const hn::Rebind<uint32_t, F> u32;
  const hn::Rebind<int32_t, F> i32;
  const hn::Rebind<uint16_t, F> u16;
  const auto rounded = hn::Add(hn::BitCast(u32, v), hn::Set(u32, 0x8000));
  hn::StoreU(hn::DemoteTo(u16, hn::BitCast(i32, hn::ShiftRight<16>(rounded))), u16,
             reinterpret_cast<uint16_t*>(p));
}

/// Rounds integers between −128 and 127.
HWY_INLINE void store(V v, int8_t* p) {
  const hn::Rebind<int8_t, F> i8;
  hn::StoreU(hn::DemoteTo(i8, hn::NearestInt(v)), i8, p);
}

HWY_INLINE V set(float x) { return hn::Set(F(), x); }
HWY_INLINE V zero() { return hn::Zero(F()); }
HWY_INLINE float sum_of_lanes(V v) { return hn::GetLane(hn::SumOfLanes(F(), v)); }

/// to[c, r] = from[r, c] for r < rows, c < columns.
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                      int64_t to_stride) {
  const hn::FixedTag<float, 4> f32;
  const hn::FixedTag<uint64_t, 2> pair;
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += 4) {
    for (int64_t c = 0; c < whole_columns; c += 4) {
      const float* x = from + r * from_stride + c;
      float* y = to + c * to_stride + r;
      const auto x0 = hn::LoadU(f32, x), x1 = hn::LoadU(f32, x + from_stride);
      const auto x2 = hn::LoadU(f32, x + 2 * from_stride), x3 = hn::LoadU(f32, x + 3 * from_stride);
      const auto low01 = hn::BitCast(pair, hn::InterleaveLower(f32, x0, x1));
      const auto low23 = hn::BitCast(pair, hn::InterleaveLower(f32, x2, x3));
      const auto high01 = hn::BitCast(pair, hn::InterleaveUpper(f32, x0, x1));
      const auto high23 = hn::BitCast(pair, hn::InterleaveUpper(f32, x2, x3));
      hn::StoreU(hn::BitCast(f32, hn::InterleaveLower(pair, low01, low23)), f32, y);
      hn::StoreU(hn::BitCast(f32, hn::InterleaveUpper(pair, low01, low23)), f32, y + to_stride);
      hn::StoreU(hn::BitCast(f32, hn::InterleaveLower(pair, high01, high23)), f32, y + 2 * to_stride);
      hn::StoreU(hn::BitCast(f32, hn::InterleaveUpper(pair, high01, high23)), f32, y + 3 * to_stride);
    }
  }
  const auto one_by_one = [&](int64_t first_row, int64_t last_row, int64_t first_column) {
    for (int64_t r = first_row; r < last_row; ++r) {
      for (int64_t c = first_column; c < columns; ++c) to[c * to_stride + r] = from[r * from_stride + c];
    }
  };
  one_by_one(0, whole_rows, whole_columns);
  one_by_one(whole_rows, rows, 0);
}

/// The power of two below: 2^n for n an integer in float, -126 ≤ n ≤ 127.
HWY_INLINE V power_of_two(V n) {
  const hn::Rebind<int32_t, F> i32;
  const auto exponent = hn::Add(hn::ConvertTo(i32, n), hn::Set(i32, 127));
  return hn::BitCast(F(), hn::ShiftLeft<23>(exponent));
}

inline constexpr float kLog2High = 0.693145751953125f,
                       kLog2Low = 1.42860682030941723e-6f;  // the first exact times n
/// Taylor's series of e^r, to r⁷ (next term 5e-9 at |r| ≤ 0.35), without its first term.
inline constexpr float kExpSeries[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f};

/// n = x / ln 2 rounded, and e^r − 1 of the rest r = x − n·ln 2, |r| ≤ 0.35.
HWY_INLINE V reduced_expm1(V x, V& n) {
  n = hn::Round(hn::Mul(x, set(1.44269504088896341f)));
  V r = hn::NegMulAdd(n, set(kLog2High), x);
  r = hn::NegMulAdd(n, set(kLog2Low), r);
  V p = set(kExpSeries[0]);
  RWKVX_UNROLL for (int term = 1; term < 6; ++term) p = hn::MulAdd(p, r, set(kExpSeries[term]));
  return hn::MulAdd(hn::Mul(p, r), r, r);
}

/// NaN stays NaN.
HWY_INLINE V clamp(V x, float low, float high) {
#if HWY_ARCH_X86
  return hn::Min(set(high), hn::Max(set(low), x));  // of a NaN and a number the second, which x is
#else
  x = hn::IfThenElse(hn::Lt(x, set(low)), set(low), x);
  return hn::IfThenElse(hn::Gt(x, set(high)), set(high), x);
#endif
}

/// −87 ≤ x ≤ 88: e^x within 2 units in the last place. Of several vectors at once, step by step: one alone
/// waits for itself, each step for the one before.
template <int kVectors>
HWY_INLINE void exp_in_range(V (&x)[kVectors]) {
  V n[kVectors], p[kVectors];
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) n[i] = hn::Round(hn::Mul(x[i], set(1.44269504088896341f)));
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = hn::NegMulAdd(n[i], set(kLog2High), x[i]);
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = hn::NegMulAdd(n[i], set(kLog2Low), x[i]);
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = set(kExpSeries[0]);
  RWKVX_UNROLL for (int term = 1; term < 7; ++term) {
    RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = hn::MulAdd(p[i], x[i], set(kExpSeries[term]));
  }
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = hn::MulAdd(p[i], x[i], set(1.0f));
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = hn::Mul(p[i], power_of_two(n[i]));
}

/// Within 2 units in the last place; 0 below the smallest normal number, infinity above e^88.
HWY_INLINE V exp(V x) {
  V n;
  const V p = hn::Add(reduced_expm1(x, n), set(1.0f));
  const V y = hn::Mul(p, power_of_two(n));
  // What is out of range is replaced, infinities too; NaN stays NaN (the comparisons are false).
  const V not_small = hn::IfThenElse(hn::Lt(x, set(-87.0f)), zero(), y);
  return hn::IfThenElse(hn::Gt(x, set(88.0f)), set(INFINITY), not_small);
}

/// 1 / x within 2 units in the last place, 1 ≤ x ≤ e^87.
HWY_INLINE V reciprocal(V x) {
  if constexpr (kLanes < 16) return hn::Div(set(1.0f), x);
  // A division of 16 takes as long as 32 multiplications; the estimate is good to 14 bits, then to 28.
  const V estimate = hn::ApproximateReciprocal(x);
  return hn::MulAdd(estimate, hn::NegMulAdd(x, estimate, set(1.0f)), estimate);
}

/// e^−87 and 1 − e^−87 at the ends.
template <int kVectors>
HWY_INLINE void sigmoid(V (&x)[kVectors]) {
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) { x[i] = clamp(hn::Neg(x[i]), -87.0f, 87.0f); }
  exp_in_range(x);
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = reciprocal(hn::Add(set(1.0f), x[i]));
}
HWY_INLINE V sigmoid(V x) {
  V one[1] = {x};
  sigmoid(one);
  return one[0];
}

/// −126 ≤ x ≤ 126: 2^x within 3e-6, for what is rounded to bfloat16 afterwards.
template <int kVectors>
HWY_INLINE void exp2_coarse(V (&x)[kVectors]) {
  const hn::Rebind<int32_t, F> i32;
  // 1.5 · 2^23: what is added to it is rounded to an integer, in its last bits.
  const V magic = set(12582912.0f);
  V n[kVectors], p[kVectors];
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) n[i] = hn::Add(x[i], magic);
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) x[i] = hn::Sub(x[i], hn::Sub(n[i], magic));  // [-1/2, 1/2]
  constexpr float kSeries[] = {9.57010034e-3f, 5.59178591e-2f, 2.40247443e-1f, 6.93121791e-1f,
                               9.99999285e-1f};
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = set(kSeries[0]);
  RWKVX_UNROLL for (int term = 1; term < 5; ++term) {
    RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) p[i] = hn::MulAdd(p[i], x[i], set(kSeries[term]));
  }
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) {
    const auto exponent = hn::ShiftLeft<23>(hn::BitCast(i32, n[i]));
    x[i] = hn::BitCast(F(), hn::Add(hn::BitCast(i32, p[i]), exponent));
  }
}

/// Within 2^-12, of itself too where it is small.
template <int kVectors>
HWY_INLINE void sigmoid_coarse(V (&x)[kVectors]) {
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) {
    x[i] = clamp(hn::Mul(x[i], set(-1.44269504088896341f)), -126.0f, 126.0f);
  }
  exp2_coarse(x);
  RWKVX_UNROLL for (int i = 0; i < kVectors; ++i) {
    x[i] = hn::ApproximateReciprocal(hn::Add(set(1.0f), x[i]));
  }
}

/// e^(2x) − 1 over itself + 2: small relative error near zero too.
HWY_INLINE V tanh(V x) {
  V n;
  const V p = reduced_expm1(clamp(hn::Add(x, x), -40.0f, 40.0f), n);
  const V scale = power_of_two(n);
  const V expm1 = hn::MulAdd(p, scale, hn::Sub(scale, set(1.0f)));
  return hn::Div(expm1, hn::Add(expm1, set(2.0f)));
}

HWY_INLINE V activate(Activation activation, V x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::tanh:
      return tanh(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::relu_squared: {
      const V positive = hn::IfThenElse(hn::Lt(x, zero()), zero(), x);  // NaN stays
      return hn::Mul(positive, positive);
    }
  }
  return x;
}

/// Calls f with a typed pointer to the view's data: f32 or bf16.
template <typename Function>
HWY_INLINE void with_real_or_bf16(DType dtype, const void* data, Function f) {
  if (dtype == DType::bf16) return f(static_cast<const BFloat16*>(data));
  RWKVX_ASSERT(dtype == DType::f32);
  f(static_cast<const float*>(data));
}
template <typename Function>
HWY_INLINE void with_real_or_bf16(DType dtype, void* data, Function f) {
  if (dtype == DType::bf16) return f(static_cast<BFloat16*>(data));
  RWKVX_ASSERT(dtype == DType::f32);
  f(static_cast<float*>(data));
}

/// Calls with a T{} of a KV store's element type.
template <typename Call>
HWY_INLINE void with_stored(DType dtype, const Call& call) {
  if (dtype == DType::bf16) return call(BFloat16{});
  if (dtype == DType::i8) return call(int8_t{});
  RWKVX_ASSERT(dtype == DType::f32);
  call(float{});
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
