/// The recurrence of one head.
#if defined(RWKVX_OPS_CPU_WKV7_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_WKV7_INL_H_
#undef RWKVX_OPS_CPU_WKV7_INL_H_
#else
#define RWKVX_OPS_CPU_WKV7_INL_H_
#endif

#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

/// One head's operands: row t of each is at t · stride.
struct Head {
  const float *r, *w, *k, *v, *a, *b;
  float* y;
  int64_t stride;
  int64_t tokens;
};

/// Few tokens: the state stays as it is stored, rows along the key dimension. Both products with a row need
/// only the row before its update: y = S r = (S ⊙ w) r + (S a)(b·r) + v (k·r).
HWY_INLINE void step_rows(const Head& head, int64_t t, float* state) {
  const int64_t at = t * head.stride;
  V w[kHeadVectors], a[kHeadVectors], b[kHeadVectors], k[kHeadVectors], wr[kHeadVectors];
  V b_r = zero(), k_r = zero();
  for (int64_t j = 0; j < kHeadVectors; ++j) {
    const V r = load(head.r + at + j * kLanes);
    w[j] = load(head.w + at + j * kLanes);
    a[j] = load(head.a + at + j * kLanes);
    b[j] = load(head.b + at + j * kLanes);
    k[j] = load(head.k + at + j * kLanes);
    wr[j] = hn::Mul(w[j], r);
    b_r = hn::MulAdd(b[j], r, b_r);
    k_r = hn::MulAdd(k[j], r, k_r);
  }
  const float b_dot_r = sum_of_lanes(b_r), k_dot_r = sum_of_lanes(k_r);
  for (int64_t i = 0; i < N; ++i) {
    float* row = state + i * N;
    V s[kHeadVectors];
    V removed = zero(), y = zero();
    for (int64_t j = 0; j < kHeadVectors; ++j) {
      s[j] = load(row + j * kLanes);
      removed = hn::MulAdd(s[j], a[j], removed);
      y = hn::MulAdd(s[j], wr[j], y);
    }
    const float s_a = sum_of_lanes(removed), value = head.v[at + i];
    head.y[at + i] = sum_of_lanes(y) + s_a * b_dot_r + value * k_dot_r;
    const V sa = set(s_a), vi = set(value);
    for (int64_t j = 0; j < kHeadVectors; ++j) {
      store(hn::MulAdd(s[j], w[j], hn::MulAdd(sa, b[j], hn::Mul(vi, k[j]))), row + j * kLanes);
    }
  }
}

/// Many tokens: value dimension in the lanes, so that no sum crosses lanes. The state is in blocks of rows i,
/// each transposed: [N / kBlock, N, kBlock].
constexpr int64_t kBlockVectors = kLanes == 16 ? 4 : 2;  // limited by the registers
constexpr int64_t kBlock = kBlockVectors * kLanes;
constexpr int64_t kFewTokens = 8;  // fewer do not pay for transposing the state

inline void to_columns(const float* state, float* columns) {
  for (int64_t row = 0; row < N; row += kBlock)
    transpose(state + row * N, N, kBlock, N, columns + row * N, kBlock);
}
inline void from_columns(const float* columns, float* state) {
  for (int64_t row = 0; row < N; row += kBlock)
    transpose(columns + row * N, kBlock, N, kBlock, state + row * N, N);
}

/// The block `s` of rows from first_row on. One pass over it for each token updates it, multiplies it with r,
/// and with the next token's a.
HWY_INLINE void step_block(const Head& head, int64_t first_row, float* s) {
  V next_sa[kBlockVectors];
  for (auto& x : next_sa) x = zero();
  for (int64_t j = 0; j < N; ++j) {
    const V a = set(head.a[j]);
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      next_sa[i] = hn::MulAdd(load(s + j * kBlock + i * kLanes), a, next_sa[i]);
    }
  }
  for (int64_t t = 0; t < head.tokens; ++t) {
    const int64_t at = t * head.stride;
    const float *r = head.r + at, *w = head.w + at, *k = head.k + at, *b = head.b + at;
    const float* next_a = t + 1 < head.tokens ? head.a + at + head.stride : head.a + at;  // the last: unused
    V sa[kBlockVectors], v[kBlockVectors], y[kBlockVectors];
    for (int64_t i = 0; i < kBlockVectors; ++i) {
      sa[i] = next_sa[i];
      v[i] = load(head.v + at + first_row + i * kLanes);
      y[i] = zero();
      next_sa[i] = zero();
    }
    for (int64_t j = 0; j < N; ++j) {
      const V wj = set(w[j]), bj = set(b[j]), kj = set(k[j]), rj = set(r[j]), aj = set(next_a[j]);
      float* row = s + j * kBlock;
      for (int64_t i = 0; i < kBlockVectors; ++i) {
        V x = hn::Mul(hn::Load(F(), row + i * kLanes), wj);
        x = hn::MulAdd(sa[i], bj, x);
        x = hn::MulAdd(v[i], kj, x);
        hn::Store(x, F(), row + i * kLanes);
        y[i] = hn::MulAdd(x, rj, y[i]);
        next_sa[i] = hn::MulAdd(x, aj, next_sa[i]);
      }
    }
    for (int64_t i = 0; i < kBlockVectors; ++i) store(y[i], head.y + at + first_row + i * kLanes);
  }
}

HWY_INLINE void step_columns(const Head& head, float* columns) {
  for (int64_t row = 0; row < N; row += kBlock) step_block(head, row, columns + row * N);
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
