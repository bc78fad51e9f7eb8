#pragma once

#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "tensor/dtype.h"

namespace rwkvx {

/// Names of element types in safetensors headers (github.com/huggingface/safetensors). The first name of a
/// type is the one that is written; truth values are read as bytes.
inline constexpr std::array<std::pair<std::string_view, DType>, 10> kSafetensorsTypes = {{
    {"F64", DType::f64},
    {"F32", DType::f32},
    {"F16", DType::f16},
    {"BF16", DType::bf16},
    {"I64", DType::i64},
    {"I32", DType::i32},
    {"I16", DType::i16},
    {"I8", DType::i8},
    {"U8", DType::u8},
    {"BOOL", DType::u8},
}};

/// The header's longest length, in bytes; Hugging Face's reader has the same limit.
inline constexpr uint64_t kSafetensorsHeaderLimit = 100'000'000;

inline std::optional<DType> safetensors_dtype(std::string_view written) {
  for (const auto& [text, dtype] : kSafetensorsTypes) {
    if (text == written) return dtype;
  }
  return std::nullopt;
}

inline std::optional<std::string_view> safetensors_name(DType dtype) {
  for (const auto& [text, type] : kSafetensorsTypes) {
    if (type == dtype) return text;
  }
  return std::nullopt;
}

}  // namespace rwkvx
