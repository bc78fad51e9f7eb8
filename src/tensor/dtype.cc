#include "tensor/dtype.h"

#include <array>

namespace rwkvx {
namespace {

constexpr std::array<DTypeInfo, 19> kInfo{{
    {"f32", 1, 4},      {"f64", 1, 8},      {"bf16", 1, 2},     {"f16", 1, 2},      {"i8", 1, 1},
    {"u8", 1, 1},       {"i16", 1, 2},      {"i32", 1, 4},      {"i64", 1, 8},      {"q4_0", 32, 18},
    {"q4_1", 32, 20},   {"q5_0", 32, 22},   {"q5_1", 32, 24},   {"q8_0", 32, 34},   {"q2_k", 256, 84},
    {"q3_k", 256, 110}, {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210},
}};

}  // namespace

const DTypeInfo& info(DType dtype) { return kInfo[static_cast<size_t>(dtype)]; }

std::optional<DType> dtype_named(std::string_view name) {
  for (size_t i = 0; i < kInfo.size(); ++i) {
    if (kInfo[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace rwkvx
