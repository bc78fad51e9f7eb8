#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "tensor/dtype.h"

namespace rwkvx {

/// Numbers of the GGUF format (ggml/docs/gguf.md).
inline constexpr std::string_view kGgufMagic = "GGUF";
inline constexpr uint32_t kGgufDefaultAlignment = 32;
inline constexpr std::string_view kGgufAlignmentKey = "general.alignment";
/// ggml refuses names of 64 bytes and more, and tensors of more than four dimensions.
inline constexpr size_t kGgufTensorNameLimit = 63;
inline constexpr int kGgufMaxRank = 4;

enum class GgufValue : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  text = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

/// Bytes that a value takes at least: strings and arrays count their lengths. Nothing for an unknown type.
std::optional<uint64_t> gguf_value_bytes(uint32_t type);

/// ggml's number of a tensor type; nothing where there is none (u8).
std::optional<uint32_t> ggml_type(DType dtype);
/// The inverse; nothing for types that rwkvx does not read.
std::optional<DType> dtype_of_ggml(uint32_t type);
/// "IQ2_XS" or "number 99": for messages.
std::string ggml_type_name(uint32_t type);

}  // namespace rwkvx
