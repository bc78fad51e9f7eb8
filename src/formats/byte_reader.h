#pragma once

#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/error.h"

namespace rwkvx {

/// A cursor over untrusted little-endian bytes. Reading past the end is an error that names `where` and what
/// was being read.
class ByteReader {
 public:
  ByteReader(std::string where, std::span<const std::byte> bytes, uint64_t position = 0)
      : where_(std::move(where)), bytes_(bytes), position_(position) {
    if (position > bytes.size()) truncated("its start");
  }

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return bytes_.size() - position_; }
  const std::string& where() const { return where_; }

  template <typename T>
  T read(std::string_view what) {
    static_assert(std::is_arithmetic_v<T> && !std::is_same_v<T, bool>);
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    if (count > remaining()) truncated(what);
    const auto result = bytes_.subspan(static_cast<size_t>(position_), static_cast<size_t>(count));
    position_ += count;
    return result;
  }
  std::string_view take_text(uint64_t count, std::string_view what) {
    const auto bytes = take(count, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  [[noreturn]] void truncated(std::string_view what) const {
    fail("{}: ends at byte {} inside {}; it is cut short or damaged: copy or download it again", where_,
         bytes_.size(), what);
  }
  std::string where_;
  std::span<const std::byte> bytes_;
  uint64_t position_;
};

}  // namespace rwkvx
