#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/wkv7.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/kernels.h"
#include "ops/cpu/prefetch.h"
#include "ops/cpu/time_mix-inl.h"
#include "ops/cpu/wkv7-inl.h"
#include "ops/cpu/wkv7_matrix-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

void wkv7_head(const Wkv7Call& call, int64_t head, int64_t begin, int64_t end, float* state) {
  const int64_t stride = call.r.dim(1), at = begin * stride + head * N;
  const Head one{call.r.as<float>() + at,
                 call.w.as<float>() + at,
                 call.k.as<float>() + at,
                 call.v.as<float>() + at,
                 call.a.as<float>() + at,
                 call.b.as<float>() + at,
                 call.y.as<float>() + at,
                 stride,
                 end - begin};
  if (one.tokens < kFewTokens) {
    for (int64_t t = 0; t < one.tokens; ++t) step_rows(one, t, state);
  } else {
    HWY_ALIGN float columns[N * N];
    to_columns(state, columns);
    step_columns(one, columns);
    from_columns(columns, state);
  }
}

/// Tokens whose operands stay in the first cache, beside the state.
constexpr int64_t kStepTokens = 8;

/// What a step reads of a head, row by row.
class StepInputs {
 public:
  StepInputs(const Wkv7Step& call, int64_t channel) : stride_(call.operands.k.dim(1)) {
    const Wkv7Operands& o = call.operands;
    for (const ConstView* x :
         {&call.recurrence.r, &o.k, &o.v, &o.decay, &o.rate, &call.output.g, &o.value_gate, &o.v_first}) {
      if (*x) rows_[count_++] = x->as<float>() + channel;
    }
  }
  HWY_INLINE void fetch(int64_t t) const {
    for (int64_t i = 0; i < count_; ++i) {
      for (int64_t c = 0; c < N; c += 16) prefetch(rows_[i] + t * stride_ + c);
    }
  }

 private:
  const float* rows_[8];
  int64_t count_ = 0, stride_;
};

/// A group's operands, rows of a head side by side.
template <int64_t kTokens, bool kCoarse>
struct StepOperands {
  alignas(64) float r[kTokens * N], w[kTokens * N], k[kTokens * N], v[kTokens * N], a[kTokens * N],
      b[kTokens * N], y[kTokens * N];

  HWY_INLINE Head rows(int64_t tokens) { return {r, w, k, v, a, b, y, N, tokens}; }

  HWY_INLINE void compute(const Wkv7Step& call, int64_t channel, int64_t first, int64_t tokens, int64_t end,
                          const StepInputs& inputs) {
    const float* read = call.recurrence.r.as<float>() + channel;
    for (int64_t i = 0; i < tokens; ++i) {
      if (first + i + kTokens < end) inputs.fetch(first + i + kTokens);
      const int64_t to = i * N;
      operands_of_head<kCoarse>(call.operands, first + i, channel, {w + to, k + to, v + to, a + to, b + to});
      const float* row = read + (first + i) * call.operands.k.dim(1);
      for (int64_t c = 0; c < N; c += kLanes) store(load(row + c), r + to + c);
    }
  }
  /// Rows from `tokens` on: tokens that change nothing.
  HWY_INLINE void pad(int64_t tokens) {
    for (float* rows : {r, k, v, a, b}) std::fill(rows + tokens * N, rows + kTokens * N, 0.0f);
    std::fill(w + tokens * N, w + kTokens * N, 1.0f);
  }
  template <typename Out>
  HWY_INLINE void finish(const Wkv7Step& call, int64_t channel, int64_t first, int64_t tokens,
                         const float* read, Out* to) const {
    for (int64_t i = 0; i < tokens; ++i) {
      output_of_head(call.output, first + i, channel, {read + i * N, r + i * N, k + i * N, v + i * N}, to);
    }
  }
};

template <typename Out>
HWY_INLINE void step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, float* state,
                          Out* y) {
  StepOperands<kStepTokens, false> operands;
  HWY_ALIGN float columns[N * N];
  const int64_t channel = head * N;
  const StepInputs inputs(call, channel);
  const bool many = end - begin >= kFewTokens;
  if (many) to_columns(state, columns);
  for (int64_t first = begin; first < end; first += kStepTokens) {
    const int64_t tokens = std::min(kStepTokens, end - first);
    operands.compute(call, channel, first, tokens, end, inputs);
    const Head rows = operands.rows(tokens);
    if (many) {
      step_columns(rows, columns);
    } else {
      for (int64_t i = 0; i < tokens; ++i) step_rows(rows, i, state);
    }
    operands.finish(call, channel, first, tokens, operands.y, y);
  }
  if (many) from_columns(columns, state);
}

/// The same by tiles.
template <typename Out>
HWY_INLINE void step_head_by_tiles(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end,
                                   const TileUnit& unit, float* state, Out* y) {
  static_assert(kBlock == N || !kHasTiles, "columns are [N, N]");
  StepOperands<kGroup, true> operands;
  Wkv7Tiles tiles;
  HWY_ALIGN float columns[N * N];
  const int64_t channel = head * N;
  const StepInputs inputs(call, channel);
  const auto& reset = call.operands.reset;
  to_columns(state, columns);
  take_state(columns, tiles);
  unit.begin();
  for (int64_t first = begin; first < end; first += kGroup) {
    const int64_t tokens = std::min(kGroup, end - first);
    operands.compute(call, channel, first, tokens, end, inputs);
    const auto resets =
        reset.empty() ? reset : reset.subspan(static_cast<size_t>(first), static_cast<size_t>(tokens));
    const float* read = operands.y;
    if (std::any_of(resets.begin(), resets.end(), [](uint8_t one) { return one != 0; })) {
      step_columns(operands.rows(tokens), columns);  // a decay of 0 has no inverse
      take_state(columns, tiles);
    } else {
      operands.pad(tokens);
      read = step_tiles(operands.rows(kGroup), unit, columns, tiles);
    }
    operands.finish(call, channel, first, tokens, read, y);
  }
  unit.end();
  from_columns(columns, state);
}

void wkv7_step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, const TileUnit* tiles,
                    float* state) {
  with_real_or_bf16(call.output.y.dtype(), call.output.y.data(), [&](auto* y) {
    if constexpr (kHasTiles) {
      if (tiles != nullptr && end - begin >= kWkv7TileRows) {
        return step_head_by_tiles(call, head, begin, end, *tiles, state, y);
      }
    }
    // Comes from memory while the operands are computed.
    for (int64_t i = 0; i < N * N; i += 16) __builtin_prefetch(state + i, 1, 3);
    step_head(call, head, begin, end, state, y);
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(wkv7_head);
HWY_EXPORT(wkv7_step_head);

void wkv7_head(const Wkv7Call& call, int64_t head, int64_t begin, int64_t end, float* state) {
  HWY_DYNAMIC_DISPATCH(wkv7_head)(call, head, begin, end, state);
}
void wkv7_step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, const TileUnit* tiles,
                    float* state) {
  HWY_DYNAMIC_DISPATCH(wkv7_step_head)(call, head, begin, end, tiles, state);
}

}  // namespace rwkvx::cpu
#endif
