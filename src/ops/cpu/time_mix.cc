#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/time_mix.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/kernels.h"
#include "ops/cpu/time_mix-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

void wkv7_operands_rows(const Wkv7Operands& call, int64_t begin, int64_t end) {
  const int64_t width = call.k.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t head = 0; head < width; head += kHeadSize) {
      const int64_t at = t * width + head;
      operands_of_head(call, t, head,
                       {call.w.as<float>() + at, call.k_out.as<float>() + at, call.v_out.as<float>() + at,
                        call.a.as<float>() + at, call.b.as<float>() + at});
    }
  }
}

void wkv7_output_rows(const Wkv7Output& call, int64_t begin, int64_t end) {
  const int64_t width = call.x.dim(1);
  with_real_or_bf16(call.y.dtype(), call.y.data(), [&](auto* y) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t head = 0; head < width; head += kHeadSize) {
        const int64_t at = t * width + head;
        output_of_head(call, t, head,
                       {call.x.as<float>() + at, call.r.as<float>() + at, call.k.as<float>() + at,
                        call.v.as<float>() + at},
                       y);
      }
    }
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(wkv7_operands_rows);
HWY_EXPORT(wkv7_output_rows);

void wkv7_operands_rows(const Wkv7Operands& call, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(wkv7_operands_rows)(call, begin, end);
}
void wkv7_output_rows(const Wkv7Output& call, int64_t begin, int64_t end) {
  HWY_DYNAMIC_DISPATCH(wkv7_output_rows)(call, begin, end);
}

}  // namespace rwkvx::cpu
#endif
