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

template <typename Out>
HWY_INLINE void step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, float* state,
                          Out* y) {
  HWY_ALIGN float r[kStepTokens * N], w[kStepTokens * N], k[kStepTokens * N], v[kStepTokens * N],
      a[kStepTokens * N], b[kStepTokens * N], x[kStepTokens * N], columns[N * N];
  const int64_t width = call.operands.k.dim(1), channel = head * N;
  const StepInputs inputs(call, channel);
  const bool many = end - begin >= kFewTokens;
  if (many) to_columns(state, columns);
  for (int64_t first = begin; first < end; first += kStepTokens) {
    const int64_t tokens = std::min(kStepTokens, end - first);
    for (int64_t i = 0; i < tokens; ++i) {
      if (first + i + kStepTokens < end) inputs.fetch(first + i + kStepTokens);
      const int64_t to = i * N;
      operands_of_head(call.operands, first + i, channel, {w + to, k + to, v + to, a + to, b + to});
      const float* read = call.recurrence.r.as<float>() + (first + i) * width + channel;
      for (int64_t c = 0; c < N; c += kLanes) store(load(read + c), r + to + c);
    }
    const Head one{r, w, k, v, a, b, x, N, tokens};
    if (many) {
      step_columns(one, columns);
    } else {
      for (int64_t i = 0; i < tokens; ++i) step_rows(one, i, state);
    }
    for (int64_t i = 0; i < tokens; ++i) {
      output_of_head(call.output, first + i, channel, {x + i * N, r + i * N, k + i * N, v + i * N}, y);
    }
  }
  if (many) from_columns(columns, state);
}

void wkv7_step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, float* state) {
  with_real_or_bf16(call.output.y.dtype(), call.output.y.data(),
                    [&](auto* y) { step_head(call, head, begin, end, state, y); });
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
void wkv7_step_head(const Wkv7Step& call, int64_t head, int64_t begin, int64_t end, float* state) {
  HWY_DYNAMIC_DISPATCH(wkv7_step_head)(call, head, begin, end, state);
}

}  // namespace rwkvx::cpu
#endif
