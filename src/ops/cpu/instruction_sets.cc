#include "ops/cpu/instruction_sets.h"

#include "hwy/targets.h"
#include "ops/cpu/linear_decode.h"

namespace rwkvx::cpu {

std::string instruction_sets(bool tiles) {
  const int64_t targets = hwy::SupportedTargets();
  const auto has = [&](int64_t target) { return (targets & target) != 0; };
  if (has(HWY_AVX3 | HWY_AVX3_DL)) {
    const bool vnni = has(HWY_AVX3_DL), bf16 = has_bf16_dot();
    std::string sets = "AVX-512";
    if (vnni) sets += " with VNNI";
    if (bf16) sets += vnni ? " and bf16" : " with bf16";
    if (tiles) sets += ", AMX";
    return sets;
  }
  if (has(HWY_AVX2)) return "AVX2";
  if (has(HWY_SSE4)) return "SSE4";
  return has(HWY_NEON) ? "NEON" : "no vectors";
}

}  // namespace rwkvx::cpu
