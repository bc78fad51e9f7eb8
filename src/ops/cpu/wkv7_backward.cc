#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/wkv7_backward.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/simd-inl.h"
#include "ops/cpu/wkv7_backward.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

/// The rows of the state do not touch each other, so they are done in blocks: the states of a whole interval
/// then stay in the second-level cache, the gradient of the state in the first.
constexpr int64_t kRows = 16;
constexpr int64_t kBlock = kRows * N;
/// Columns (the key dimension) are in the lanes: of the eight sums, only u = S a, its gradient and that of v
/// cross them. As many vectors as leave operands and sums in registers.
constexpr int kRerunVectors = kLanes == 16 ? 4 : 2;
constexpr int kStepVectors = kLanes == 16 ? 2 : 1;

/// One head's operands and gradients in an interval: row t of each is at t · stride.
struct Interval {
  const float *r, *w, *k, *v, *a, *b, *dy;
  float *dr, *dw, *dk, *dv, *da, *db;
  int64_t stride;
  int64_t tokens;
};

/// Σ over lanes of pairs: in each 128-bit block [x₀ + x₂, y₀ + y₂, x₁ + x₃, y₁ + y₃].
HWY_INLINE V add_pairs(V x, V y) {
  return hn::Add(hn::InterleaveLower(F(), x, y), hn::InterleaveUpper(F(), x, y));
}
/// In each block, the sums of the block's lanes of 4 vectors.
HWY_INLINE V add_blocks(const float* x) {
  const hn::Repartition<uint64_t, F> pairs;
  const auto low = hn::BitCast(pairs, add_pairs(load(x), load(x + kLanes)));
  const auto high = hn::BitCast(pairs, add_pairs(load(x + 2 * kLanes), load(x + 3 * kLanes)));
  return hn::Add(hn::BitCast(F(), hn::InterleaveLower(pairs, low, high)),
                 hn::BitCast(F(), hn::InterleaveUpper(pairs, low, high)));
}
/// The sums of kLanes vectors, each over its lanes.
HWY_INLINE V sums_of_lanes(const float* x) {
  if constexpr (kLanes == 4) return add_blocks(x);
  const auto halves = [](V low, V high) {
    return hn::Add(hn::ConcatLowerLower(F(), high, low), hn::ConcatUpperUpper(F(), high, low));
  };
  const int64_t step = 4 * kLanes;
  if constexpr (kLanes == 8) return halves(add_blocks(x), add_blocks(x + step));
  const V even = halves(add_blocks(x), add_blocks(x + 2 * step));
  const V odd = halves(add_blocks(x + step), add_blocks(x + 3 * step));
  return hn::Add(hn::OddEvenBlocks(hn::SwapAdjacentBlocks(odd), even),
                 hn::OddEvenBlocks(odd, hn::SwapAdjacentBlocks(even)));
}

/// A sum for each of kRows rows, its lanes not yet added up.
struct RowSums {
  HWY_ALIGN float parts[kRows * kLanes];
  float* of(int64_t row) { return parts + row * kLanes; }
  V sums(int64_t first_row) const { return sums_of_lanes(parts + first_row * kLanes); }
};

/// states[0] [kRows, N] is given: finds those behind each token, and removed [tokens, kRows] = S a.
HWY_INLINE void rerun(const Interval& in, int64_t first_row, float* states, float* removed) {
  RowSums sums;
  for (int64_t i = 0; i < kRows; ++i) {
    V sum = zero();
    for (int64_t j = 0; j < N; j += kLanes) sum = hn::MulAdd(load(states + i * N + j), load(in.a + j), sum);
    store(sum, sums.of(i));
  }
  for (int64_t t = 0; t < in.tokens; ++t) {
    const int64_t at = t * in.stride, next = t + 1 < in.tokens ? at + in.stride : at;  // the last: unused
    float* u = removed + t * kRows;
    const float *v = in.v + at + first_row, *before = states + t * kBlock;
    float* after = states + (t + 1) * kBlock;
    for (int64_t i = 0; i < kRows; i += kLanes) store(sums.sums(i), u + i);
    for (int64_t j = 0; j < N; j += kRerunVectors * kLanes) {
      V w[kRerunVectors], k[kRerunVectors], b[kRerunVectors], a[kRerunVectors];
      RWKVX_UNROLL for (int c = 0; c < kRerunVectors; ++c) {
        w[c] = load(in.w + at + j + c * kLanes);
        k[c] = load(in.k + at + j + c * kLanes);
        b[c] = load(in.b + at + j + c * kLanes);
        a[c] = load(in.a + next + j + c * kLanes);
      }
      for (int64_t i = 0; i < kRows; ++i) {
        const V ui = set(u[i]), vi = set(v[i]);
        V sum = j == 0 ? zero() : load(sums.of(i));
        RWKVX_UNROLL for (int c = 0; c < kRerunVectors; ++c) {
          V s = hn::Mul(load(before + i * N + j + c * kLanes), w[c]);
          s = hn::MulAdd(ui, b[c], s);
          s = hn::MulAdd(vi, k[c], s);
          store(s, after + i * N + j + c * kLanes);
          sum = hn::MulAdd(s, a[c], sum);
        }
        store(sum, sums.of(i));
      }
    }
  }
}

/// What the backward of a block of rows shares.
struct RowBlock {
  const Interval& in;
  int64_t first;    // of the state's rows
  float* gradient;  // [kRows, N] of the state
  HWY_ALIGN float dremoved[kRows];
  RowSums dremoved_sums, dv_sums;
};

/// One pass over the state `s` between tokens t − 1 and t: sends its gradient G (which contains all that
/// comes later, and y of token t) to the operands of token t and through it, adds that of y of token t − 1
/// and begins the sums over columns of that token. kThis, kBefore: whether the interval has token t, token
/// t − 1.
template <bool kThis, bool kBefore>
HWY_INLINE void step_back(RowBlock& rows, int64_t t, const float* s, const float* removed) {
  const Interval& in = rows.in;
  constexpr int kC = kStepVectors;
  const int64_t at = t * in.stride, before = at - in.stride;
  const float *v = in.v + at + rows.first, *dy = in.dy + before + rows.first;
  for (int64_t j = 0; j < N; j += kC * kLanes) {
    V w[kC], a[kC], r[kC], k[kC], b[kC], dw[kC], da[kC], dk[kC], db[kC], dr[kC];
    RWKVX_UNROLL for (int c = 0; c < kC; ++c) {
      const int64_t column = j + c * kLanes;
      if constexpr (kThis) {
        const bool begins = rows.first == 0;
        w[c] = load(in.w + at + column);
        a[c] = load(in.a + at + column);
        dk[c] = load(in.dk + at + column);
        dw[c] = begins ? zero() : load(in.dw + at + column);
        da[c] = begins ? zero() : load(in.da + at + column);
        db[c] = begins ? zero() : load(in.db + at + column);
      }
      if constexpr (kBefore) {
        r[c] = load(in.r + before + column);
        k[c] = load(in.k + before + column);
        b[c] = load(in.b + before + column);
        dr[c] = load(in.dr + before + column);
      }
    }
    for (int64_t i = 0; i < kRows; ++i) {
      float* gradient = rows.gradient + i * N + j;
      const float* state = s + i * N + j;
      V dremoved, removed_i, vi, dyi, dremoved_sum, dv_sum;
      if constexpr (kThis) {
        dremoved = set(rows.dremoved[i]);
        removed_i = set(removed[i]);
        vi = set(v[i]);
      }
      if constexpr (kBefore) {
        dyi = set(dy[i]);
        dremoved_sum = j == 0 ? zero() : load(rows.dremoved_sums.of(i));
        dv_sum = j == 0 ? zero() : load(rows.dv_sums.of(i));
      }
      RWKVX_UNROLL for (int c = 0; c < kC; ++c) {
        const V x = load(state + c * kLanes);
        V g = load(gradient + c * kLanes);
        if constexpr (kThis) {
          dw[c] = hn::MulAdd(g, x, dw[c]);
          dk[c] = hn::MulAdd(g, vi, dk[c]);
          da[c] = hn::MulAdd(x, dremoved, da[c]);
          db[c] = hn::MulAdd(g, removed_i, db[c]);
          g = hn::MulAdd(dremoved, a[c], hn::Mul(g, w[c]));
        }
        if constexpr (kBefore) {
          dr[c] = hn::MulAdd(x, dyi, dr[c]);
          g = hn::MulAdd(dyi, r[c], g);
          dremoved_sum = hn::MulAdd(g, b[c], dremoved_sum);
          dv_sum = hn::MulAdd(g, k[c], dv_sum);
        }
        store(g, gradient + c * kLanes);
      }
      if constexpr (kBefore) {
        store(dremoved_sum, rows.dremoved_sums.of(i));
        store(dv_sum, rows.dv_sums.of(i));
      }
    }
    RWKVX_UNROLL for (int c = 0; c < kC; ++c) {
      const int64_t column = j + c * kLanes;
      if constexpr (kThis) {
        store(dw[c], in.dw + at + column);
        store(dk[c], in.dk + at + column);
        store(da[c], in.da + at + column);
        store(db[c], in.db + at + column);
      }
      if constexpr (kBefore) store(dr[c], in.dr + before + column);
    }
  }
  if constexpr (kBefore) {
    for (int64_t i = 0; i < kRows; i += kLanes) {
      float* dv = in.dv + before + rows.first + i;
      store(rows.dremoved_sums.sums(i), rows.dremoved + i);
      store(hn::Add(load(dv), rows.dv_sums.sums(i)), dv);
    }
  }
}

void wkv7_head_backward(const Wkv7Call& call, const Wkv7Gradients& g, size_t sequence, int64_t head,
                        Wkv7BackwardScratch& scratch) {
  const int64_t stride = call.r.dim(1), heads = stride / N;
  const int64_t begin = call.offsets[sequence], end = call.offsets[sequence + 1];
  const int64_t first_interval = wkv7_intervals(call.offsets.first(sequence + 1));
  float* gradient = nullptr;
  if (g.dstates.empty()) {
    gradient = scratch.gradient.take<float>(N * N);
    std::fill(gradient, gradient + N * N, 0.0f);
  } else {
    gradient = static_cast<float*>(g.dstates[sequence]) + head * N * N;
  }
  float* states = scratch.states.take<float>((kWkv7Interval + 1) * kBlock);
  HWY_ALIGN float removed[kWkv7Interval * kRows];
  for (int64_t i = wkv7_intervals(call.offsets.first(sequence + 2)) - first_interval - 1; i >= 0; --i) {
    const int64_t from = begin + i * kWkv7Interval, at = from * stride + head * N;
    const auto input = [&](const ConstView& x) { return x.as<float>() + at; };
    const auto output = [&](const View& x) { return x.as<float>() + at; };
    const Interval in{
        input(call.r), input(call.w), input(call.k), input(call.v), input(call.a),
        input(call.b), input(g.dy),   output(g.dr),  output(g.dw),  output(g.dk),
        output(g.dv),  output(g.da),  output(g.db),  stride,        std::min(kWkv7Interval, end - from)};
    const float* kept = call.kept.as<float>() + ((first_interval + i) * heads + head) * N * N;
    for (int64_t row = 0; row < N; row += kRows) {
      std::copy_n(kept + row * N, kBlock, states);
      rerun(in, row, states, removed);
      RowBlock rows{in, row, gradient + row * N, {}, {}, {}};
      step_back<false, true>(rows, in.tokens, states + in.tokens * kBlock, nullptr);
      for (int64_t t = in.tokens - 1; t > 0; --t) {
        step_back<true, true>(rows, t, states + t * kBlock, removed + t * kRows);
      }
      step_back<true, false>(rows, 0, states, removed);
    }
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(wkv7_head_backward);

void wkv7_head_backward(const Wkv7Call& call, const Wkv7Gradients& gradients, size_t sequence, int64_t head,
                        Wkv7BackwardScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(wkv7_head_backward)(call, gradients, sequence, head, scratch);
}

}  // namespace rwkvx::cpu
#endif
