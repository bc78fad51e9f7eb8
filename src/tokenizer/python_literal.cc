#include <cstdint>

#include "base/error.h"
#include "tokenizer/tokenizer.h"

// Literals as in the Python language reference, section 2.4.1 "String and Bytes literals", without prefixes
// other than b, without triple quotes, and stricter in one thing: an unknown escape is an error.

namespace rwkvx {
namespace {

enum class Kind { text, bytes };

class Unescaper {
 public:
  Unescaper(std::string_view body, Kind kind) : body_(body), kind_(kind) {}

  std::string run() {
    std::string out;
    out.reserve(body_.size());
    while (at_ < body_.size()) {
      const char c = body_[at_++];
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
    return out;
  }

 private:
  void escape(std::string& out) {
    if (at_ == body_.size()) fail("the escape at its end has nothing behind the backslash");
    const char c = body_[at_++];
    switch (c) {
      case '\\':
      case '\'':
      case '"':
        out += c;
        return;
      case 'a':
        out += '\a';
        return;
      case 'b':
        out += '\b';
        return;
      case 'f':
        out += '\f';
        return;
      case 'n':
        out += '\n';
        return;
      case 'r':
        out += '\r';
        return;
      case 't':
        out += '\t';
        return;
      case 'v':
        out += '\v';
        return;
      case 'x':
        append(out, hex(2));
        return;
      default:
        break;
    }
    if (c >= '0' && c <= '7') {
      uint32_t value = static_cast<uint32_t>(c - '0');
      for (int i = 1; i < 3 && at_ < body_.size() && body_[at_] >= '0' && body_[at_] <= '7'; ++i) {
        value = value * 8 + static_cast<uint32_t>(body_[at_++] - '0');
      }
      append(out, value);
    } else if (kind_ == Kind::text && (c == 'u' || c == 'U')) {
      append(out, hex(c == 'u' ? 4 : 8));
    } else {
      fail("unknown escape \\{}", printable({&c, 1}));
    }
  }

  uint32_t hex(size_t digits) {
    uint32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char c = at_ < body_.size() ? body_[at_++] : '\0';
      uint32_t digit = 0;
      if (c >= '0' && c <= '9') {
        digit = static_cast<uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<uint32_t>(c - 'a') + 10;
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<uint32_t>(c - 'A') + 10;
      } else {
        fail("an escape needs {} hexadecimal digits and has {}", digits, i);
      }
      value = value << 4 | digit;
    }
    return value;
  }

  /// A value written as a number: one byte in a bytes literal, a character in UTF-8 in a text literal.
  void append(std::string& out, uint32_t value) {
    const auto byte = [&out](uint32_t b) { out += static_cast<char>(b); };
    if (kind_ == Kind::bytes) {
      if (value > 0xff) fail("the escape with the value {} does not fit into a byte", value);
      byte(value);
    } else if (value < 0x80) {
      byte(value);
    } else if (value < 0x800) {
      byte(0xc0 | value >> 6);
      byte(0x80 | (value & 0x3f));
    } else if (value < 0x10000) {
      if (value >= 0xd800 && value < 0xe000)
        fail("U+{:04X} is half a surrogate pair, not a character", value);
      byte(0xe0 | value >> 12);
      byte(0x80 | (value >> 6 & 0x3f));
      byte(0x80 | (value & 0x3f));
    } else {
      if (value > 0x10ffff) fail("U+{:X} is not a character", value);
      byte(0xf0 | value >> 18);
      byte(0x80 | (value >> 12 & 0x3f));
      byte(0x80 | (value >> 6 & 0x3f));
      byte(0x80 | (value & 0x3f));
    }
  }

  std::string_view body_;
  Kind kind_;
  size_t at_ = 0;
};

}  // namespace

std::string unescape_python_literal(std::string_view literal) {
  Kind kind = Kind::text;
  std::string_view body = literal;
  if (!body.empty() && (body[0] == 'b' || body[0] == 'B')) {
    kind = Kind::bytes;
    body.remove_prefix(1);
  }
  if (body.size() < 2 || (body.front() != '\'' && body.front() != '"') || body.back() != body.front()) {
    fail("a Python literal in quotes is needed, not {}", printable(literal));
  }
  const char quote = body.front();
  body.remove_prefix(1);
  body.remove_suffix(1);
  for (size_t i = 0; i < body.size(); ++i) {
    if (body[i] == '\\') {
      // A backslash before what was taken for the closing quote leaves the literal open.
      if (++i == body.size()) fail("the literal {} has no closing quote", printable(literal));
    } else if (body[i] == quote) {
      fail("the literal {} ends before its last quote", printable(literal));
    } else if (kind == Kind::bytes && static_cast<unsigned char>(body[i]) >= 0x80) {
      fail("the bytes literal {} has a character that is not ASCII; write it as \\x..", printable(literal));
    }
  }
  return Unescaper(body, kind).run();
}

std::string unescape_python_bytes(std::string_view escaped) { return Unescaper(escaped, Kind::bytes).run(); }

std::string escape_python_bytes(std::string_view bytes) {
  // Python's repr: double quotes only where that saves escaping single ones.
  const bool double_quoted = bytes.find('\'') != bytes.npos && bytes.find('"') == bytes.npos;
  std::string out;
  out.reserve(bytes.size());
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '\\' || (c == '\'' && !double_quoted)) {
      out += '\\';
      out += c;
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (byte < 0x20 || byte >= 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace rwkvx
