#include "ops/cpu/instruction_sets.h"

#include "hwy/targets.h"
#include "ops/cpu/linear_decode.h"

namespace rwkvx::cpu {

std::string instruction_sets(bool tiles) {
  const int64_t targets = hwy::SupportedTargets();
  const auto has = [&](int64_t target) { return (targets & target) != 0; };
  const std::string_view more = tiles ? ", AMX" : "";
  if (has(HWY_AVX3 | HWY_AVX3_DL)) {
    const bool vnni = has(HWY_AVX3_DL), bf16 = has_bf16_dot();
    const std::string_view with = vnni && bf16 ? " with VNNI and bf16"
                                  : vnni       ? " with VNNI"
                                  : bf16       ? " with bf16"
                                               : "";
    return "AVX-512" + std::string(with) + std::string(more);
  }
  if (has(HWY_AVX2)) return "AVX2" + std::string(more);
  if (has(HWY_SSE4)) return "SSE4" + std::string(more);
  return has(HWY_NEON) ? "NEON" : "no vectors";
}

}  // namespace rwkvx::cpu
