#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace rwkvx {

/// Element types. The quantised ones are GGUF's block formats; a block is the smallest unit with an address.
enum class DType : uint8_t {
  f32,
  f64,
  bf16,
  f16,
  i8,
  u8,
  i16,
  i32,
  i64,
  q4_0,
  q4_1,
  q5_0,
  q5_1,
  q8_0,
  q2_k,
  q3_k,
  q4_k,
  q5_k,
  q6_k,
};

struct DTypeInfo {
  std::string_view name;    ///< as printed and as written on command lines: "bf16"
  uint32_t block_elements;  ///< 1 except for quantised types
  uint32_t block_bytes;
};

const DTypeInfo& info(DType dtype);
inline std::string_view name(DType dtype) { return info(dtype).name; }
std::optional<DType> dtype_named(std::string_view name);

inline bool is_float(DType d) {
  return d == DType::f32 || d == DType::f64 || d == DType::bf16 || d == DType::f16;
}
inline bool is_quantised(DType d) { return info(d).block_elements > 1; }

}  // namespace rwkvx
