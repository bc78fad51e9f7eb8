#include "formats/gguf_types.h"

#include <fmt/format.h>

#include <array>
#include <utility>

namespace rwkvx {
namespace {

constexpr std::array<std::pair<uint32_t, DType>, 18> kTypes = {{
    {0, DType::f32},
    {1, DType::f16},
    {2, DType::q4_0},
    {3, DType::q4_1},
    {6, DType::q5_0},
    {7, DType::q5_1},
    {8, DType::q8_0},
    {10, DType::q2_k},
    {11, DType::q3_k},
    {12, DType::q4_k},
    {13, DType::q5_k},
    {14, DType::q6_k},
    {24, DType::i8},
    {25, DType::i16},
    {26, DType::i32},
    {27, DType::i64},
    {28, DType::f64},
    {30, DType::bf16},
}};

constexpr std::array<std::pair<uint32_t, std::string_view>, 15> kUnreadable = {{
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {20, "IQ4_NL"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {23, "IQ4_XS"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
    {39, "MXFP4"},
    {40, "NVFP4"},
}};

}  // namespace

std::optional<uint64_t> gguf_value_bytes(uint32_t type) {
  constexpr std::array<uint64_t, 13> kBytes = {1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8};
  if (type >= kBytes.size()) return std::nullopt;
  return kBytes[type];
}

std::optional<uint32_t> ggml_type(DType dtype) {
  for (const auto& [number, type] : kTypes) {
    if (type == dtype) return number;
  }
  return std::nullopt;
}

std::optional<DType> dtype_of_ggml(uint32_t type) {
  for (const auto& [number, dtype] : kTypes) {
    if (number == type) return dtype;
  }
  return std::nullopt;
}

std::string ggml_type_name(uint32_t type) {
  for (const auto& [number, text] : kUnreadable) {
    if (number == type) return std::string(text);
  }
  return fmt::format("number {}", type);
}

}  // namespace rwkvx
