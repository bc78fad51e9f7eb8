#include "runtime/text_stream.h"

#include <algorithm>

#include "base/assert.h"
#include "base/error.h"

namespace rwkvx {

size_t incomplete_utf8_tail(std::string_view bytes) {
  for (size_t n = 1; n <= 3 && n <= bytes.size(); ++n) {
    const auto lead = static_cast<unsigned char>(bytes[bytes.size() - n]);
    if (lead >= 0x80 && lead < 0xc0) continue;  // the character begins further left
    const size_t length = lead >= 0xc2 && lead < 0xe0   ? 2
                          : lead >= 0xe0 && lead < 0xf0 ? 3
                          : lead >= 0xf0 && lead < 0xf5 ? 4
                                                        : 1;
    if (n >= length) return 0;
    if (n >= 2) {
      // These leads allow only a part of the continuation bytes behind them: no overlong forms, no
      // surrogates, nothing above U+10FFFF.
      const auto second = static_cast<unsigned char>(bytes[bytes.size() - n + 1]);
      const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
      const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
      if (second < low || second > high) return 0;
    }
    return n;
  }
  return 0;
}

TextStream::TextStream(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) throw UsageError("--stop must not be empty");
  }
}

TextStream::Piece TextStream::feed(std::string_view bytes) {
  RWKVX_ASSERT(!stopped_);
  held_ += bytes;

  size_t stop_begin = held_.npos, stop_end = held_.npos;
  for (const std::string& stop : stops_) {
    const size_t begin = held_.find(stop);
    if (begin == held_.npos) continue;
    const size_t end = begin + stop.size();
    if (end < stop_end || (end == stop_end && begin < stop_begin)) {
      stop_begin = begin;
      stop_end = end;
    }
  }
  if (stop_end != held_.npos) {
    stopped_ = true;
    held_.resize(stop_begin);
    return {std::move(held_), true};
  }

  // Hold back the longest end that a stop string begins with, and before it what may become a character.
  size_t held = 0;
  for (const std::string& stop : stops_) {
    size_t n = std::min(stop.size() - 1, held_.size());
    while (n > held && !std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) --n;
    held = std::max(held, n);
  }
  const std::string_view rest = std::string_view(held_).substr(0, held_.size() - held);
  Piece piece{std::string(rest.substr(0, rest.size() - incomplete_utf8_tail(rest))), false};
  held_.erase(0, piece.text.size());
  return piece;
}

std::string TextStream::finish() {
  if (stopped_) return "";
  return std::exchange(held_, "");
}

}  // namespace rwkvx
