#include "tokenizer/world_vocabulary.h"

#include <charconv>
#include <cstdint>
#include <optional>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {
namespace {

// A line may claim any id, and the table of tokens is as long as the largest one. World has 65,536.
constexpr uint64_t kMaxId = (uint64_t{1} << 20) - 1;
constexpr uint64_t kMaxFileBytes = uint64_t{1} << 28;

std::optional<uint64_t> parse_number(std::string_view digits) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return value;
}

/// One line, without its end, added to `tokens`.
void parse_line(std::string_view line, std::vector<std::string>& tokens) {
  const size_t first = line.find(' '), last = line.rfind(' ');
  if (first == line.npos || first == last) {
    fail("'{}' is not of the form `id literal length`", printable(line));
  }
  const std::optional<uint64_t> id = parse_number(line.substr(0, first));
  if (!id) fail("the id '{}' is not a number", printable(line.substr(0, first)));
  if (*id == 0) fail("id 0 is the end of a document and has no bytes; ids start at 1");
  if (*id > kMaxId) fail("id {} is larger than {}, the largest this reader takes", *id, kMaxId);
  if (*id < tokens.size()) fail("id {} does not come after id {}; ids must rise", *id, tokens.size() - 1);

  const std::optional<uint64_t> length = parse_number(line.substr(last + 1));
  if (!length) fail("the length '{}' is not a number", printable(line.substr(last + 1)));
  std::string bytes = unescape_python_literal(line.substr(first + 1, last - first - 1));
  if (bytes.empty()) fail("token {} has no bytes", *id);
  if (bytes.size() != *length) {
    fail("token {} has {} bytes, but its length column says {}", *id, bytes.size(), *length);
  }
  tokens.resize(*id);
  tokens.push_back(std::move(bytes));
}

}  // namespace

std::vector<std::string> parse_world_vocabulary(std::string_view text, std::string_view file) {
  std::vector<std::string> tokens(1);
  size_t number = 0;
  while (!text.empty()) {
    ++number;
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == text.npos ? text.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    try {
      parse_line(line, tokens);
    } catch (const Error& error) {
      fail("{}, line {}: {}", file, number, error.what());
    }
  }
  if (tokens.size() == 1) fail("{} is empty; a World vocabulary has lines of `id literal length`", file);
  return tokens;
}

std::shared_ptr<const Tokenizer> read_world_vocabulary(const Path& path) {
  const std::string file = path.string();
  std::vector<std::string> tokens = parse_world_vocabulary(read_file(path, kMaxFileBytes), file);
  try {
    return make_world_tokenizer(std::move(tokens));
  } catch (const Error& error) {
    fail("{}: {}", file, error.what());
  }
}

}  // namespace rwkvx
