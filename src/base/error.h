#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace rwkvx {

/// The one exception of the library. what() says what was wrong, where (file, tensor, flag, line) and what to
/// do about it, in one line. Programmer mistakes are assertions (base/assert.h), not errors.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message) : std::runtime_error(message) {}
};

/// A wrong command line: the CLI exits with 2 instead of 1.
class UsageError : public Error {
 public:
  using Error::Error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

/// Text of untrusted origin made safe for a one-line message: control bytes and invalid UTF-8 escaped, cut at
/// `limit` bytes.
std::string printable(std::string_view text, size_t limit = 80);

}  // namespace rwkvx
