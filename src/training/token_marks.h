#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/half.h"

namespace rwkvx {

/// What training makes of a token beside its id.
struct TokenMark {
  float weight = 1;    ///< of its loss as a target; 0: it does not count
  bool reset = false;  ///< WKV states forget what came before it
};

/// As NAME.weights has it: a float16 that is not negative, with the sign bit for the reset.
inline uint16_t packed(TokenMark mark) {
  return static_cast<uint16_t>(to_float16(mark.weight).bits | (mark.reset ? 0x8000u : 0u));
}
inline TokenMark unpacked(uint16_t bits) {
  return {to_float(Float16{static_cast<uint16_t>(bits & 0x7fffu)}), (bits & 0x8000u) != 0};
}
inline constexpr float kMostTokenWeight = 65504;  ///< the largest float16

/// A part of a document with marks of its own.
struct TextSegment {
  std::string text;
  TokenMark mark;  ///< `reset` is for its first token
};

/// Of {"segments": [{"text": "…", "weight": 0.1, "reset": true}, …]}; nothing when a JSON object has no
/// "segments". Errors say what is wrong, without the place.
std::optional<std::vector<TextSegment>> text_segments(std::string_view line);

}  // namespace rwkvx
