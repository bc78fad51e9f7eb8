#include "base/error.h"

#include <gtest/gtest.h>

#include "base/assert.h"

namespace rwkvx {
namespace {

TEST(Fail, FormatsItsMessage) {
  try {
    fail("{} holds {} tensors", "a.gguf", 3);
    FAIL() << "fail() returned";
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "a.gguf holds 3 tensors");
  }
}

TEST(Fail, AUsageErrorIsAnError) { EXPECT_THROW(throw UsageError("--top-k needs a number"), Error); }

TEST(Printable, KeepsPrintableText) {
  EXPECT_EQ(printable(""), "");
  EXPECT_EQ(printable("blocks.0.att.key ~!"), "blocks.0.att.key ~!");
}

TEST(Printable, KeepsValidUtf8) { EXPECT_EQ(printable("Modèle-7日本😀.pth"), "Modèle-7日本😀.pth"); }

TEST(Printable, EscapesControlBytes) {
  EXPECT_EQ(printable(std::string_view("a\0b\n\x1b[31m\x7f", 10)), "a\\x00b\\x0a\\x1b[31m\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\xc2\\x9b31m");  // C1 control: some terminals take it as ESC [
}

TEST(Printable, EscapesInvalidUtf8) {
  EXPECT_EQ(printable("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(printable("\x80z"), "\\x80z");                           // continuation without a start
  EXPECT_EQ(printable("\xe6\x97"), "\\xe6\\x97");                    // cut off
  EXPECT_EQ(printable("\xe6\x97z"), "\\xe6\\x97z");                  // broken by another character
  EXPECT_EQ(printable("\xc0\xaf"), "\\xc0\\xaf");                    // overlong
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");           // overlong
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
}

TEST(Printable, CutsLongText) {
  EXPECT_EQ(printable("abcdef", 6), "abcdef");
  EXPECT_EQ(printable("abcdefg", 6), "abcdef...");
  EXPECT_EQ(printable("abcdé", 5), "abcd...");  // no half character
}

TEST(AssertDeathTest, NamesTheCondition) {
  const int rows = 2;
  RWKVX_ASSERT(rows == 2);
  EXPECT_DEATH(RWKVX_ASSERT(rows == 3), "error_test.cc:[0-9]+: rows == 3 does not hold");
}

}  // namespace
}  // namespace rwkvx
