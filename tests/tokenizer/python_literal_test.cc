#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabularies.h"

namespace rwkvx {
namespace {

using namespace std::string_literals;
using testing::error_of;
using ::testing::HasSubstr;

// Expectations: Python's ast.literal_eval of the left side, text as UTF-8.
TEST(PythonLiteral, Unescapes) {
  const std::pair<std::string, std::string> cases[] = {
      {R"('abc')", "abc"},
      {R"("it's")", "it's"},
      {R"('it\'s')", "it's"},
      {R"('say "no"')", "say \"no\""},
      {R"('\n\t\r\\\'\"\a\b\f\v')", "\n\t\r\\'\"\a\b\f\v"},
      {R"('\x00\x7f')", "\0\x7f"s},
      {R"('\xe9')", "\xc3\xa9"},
      {R"(b'\xe9')", "\xe9"},
      {R"(B"\xFF'")", "\xff'"},
      {R"('\u4f60\U0001F600')", "\xe4\xbd\xa0\xf0\x9f\x98\x80"},
      {R"('\101\0\400')", "A\0\xc4\x80"s},
      {R"(b'\3777')",
       "\xff"
       "7"},
      {"'\xe4\xbd\xa0'", "\xe4\xbd\xa0"},
      {"''", ""},
      {R"('\\')", "\\"},
      {R"('\\\'')", "\\'"},
      {"' '", " "},
  };
  for (const auto& [literal, bytes] : cases) EXPECT_EQ(unescape_python_literal(literal), bytes) << literal;
}

TEST(PythonLiteral, RefusesWhatIsMalformed) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "in quotes"},
      {"b", "in quotes"},
      {"'", "in quotes"},
      {"abc", "in quotes"},
      {"'abc\"", "in quotes"},
      {"r'abc'", "in quotes"},
      {"b''a", "in quotes"},
      {"'a'b'", "ends before its last quote"},
      {"'''a'''", "ends before its last quote"},
      {R"('\')", "no closing quote"},
      {R"('abc\\\')", "no closing quote"},
      {R"('\d')", "unknown escape \\d"},
      {R"('\N{BULLET}')", "unknown escape \\N"},
      {R"(b'\u0041')", "unknown escape \\u"},
      {R"('\x4')", "2 hexadecimal digits and has 1"},
      {R"('\xg0')", "2 hexadecimal digits and has 0"},
      {R"('\u12')", "4 hexadecimal digits and has 2"},
      {R"('\ud800')", "half a surrogate pair"},
      {R"('\U00110000')", "U+110000 is not a character"},
      {R"(b'\400')", "does not fit into a byte"},
      {"b'\xc3\xa9'", "not ASCII"},
  };
  for (const auto& [literal, message] : cases) {
    EXPECT_THAT(error_of([&] { unescape_python_literal(literal); }), HasSubstr(message)) << literal;
  }
  EXPECT_THAT(error_of([] { unescape_python_bytes("abc\\"); }), HasSubstr("nothing behind the backslash"));
}

// Expectations: Python's repr(...)[2:-1].
TEST(PythonLiteral, EscapesAsPythonsReprOfBytes) {
  const std::pair<std::string, std::string> cases[] = {
      {"abc ~", "abc ~"},
      {"it's", "it's"},
      {"say \"no\"", "say \"no\""},
      {"it's \"so\"", "it\\'s \"so\""},
      {"\t\n\r\\", "\\t\\n\\r\\\\"},
      {"\0\x1f\x7f\x80\xff"s, "\\x00\\x1f\\x7f\\x80\\xff"},
      {"\a\b\f\v", "\\x07\\x08\\x0c\\x0b"},
      {"\xe4\xbd\xa0", "\\xe4\\xbd\\xa0"},
      {"", ""},
  };
  for (const auto& [bytes, escaped] : cases) EXPECT_EQ(escape_python_bytes(bytes), escaped);
}

TEST(PythonLiteral, UnescapeTakesEveryEscapeBack) {
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    std::string bytes = testing::random_bytes(random, random() % 12, 256);
    if (i % 3 == 0) bytes += "'\\\"";
    if (i % 3 == 1) bytes += "'";
    ASSERT_EQ(unescape_python_bytes(escape_python_bytes(bytes)), bytes);
  }
}

}  // namespace
}  // namespace rwkvx
