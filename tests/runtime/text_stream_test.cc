#include "runtime/text_stream.h"

#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace rwkvx {
namespace {

/// A strict UTF-8 check of its own: whether `text` is whole characters only.
bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto at = [&](size_t k) {
      return i + k < text.size() ? unsigned(static_cast<unsigned char>(text[i + k])) : 0u;
    };
    const unsigned c = at(0);
    const size_t length = c < 0x80 ? 1 : c >> 5 == 6 ? 2 : c >> 4 == 14 ? 3 : c >> 3 == 30 ? 4 : 0;
    if (length == 0) return false;
    unsigned point = length == 1 ? c : c & (0xffu >> (length + 1));
    for (size_t k = 1; k < length; ++k) {
      if (at(k) >> 6 != 2) return false;
      point = point << 6 | (at(k) & 0x3f);
    }
    constexpr unsigned kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
    if (point < kLeast[length] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
    i += length;
  }
  return true;
}

struct Result {
  std::vector<std::string> pieces;
  std::string text;
  bool stopped = false;
};

/// Feeds `text` in parts of these sizes (the last one repeated) until it is over or stopped.
Result stream(std::string_view text, const std::vector<std::string>& stops,
              const std::vector<size_t>& sizes) {
  TextStream out(stops);
  Result result;
  for (size_t i = 0; !text.empty() && !result.stopped; ++i) {
    const size_t size = std::min(text.size(), sizes[std::min(i, sizes.size() - 1)]);
    TextStream::Piece piece = out.feed(text.substr(0, size));
    text.remove_prefix(size);
    result.text += piece.text;
    result.pieces.push_back(std::move(piece.text));
    result.stopped = piece.stopped;
  }
  result.text += result.pieces.emplace_back(out.finish());
  return result;
}

const std::string kMixed =
    "a\xc3\xa9z \xe4\xbd\xa0\xe5\xa5\xbd\xf0\x9f\x98\x80!\xef\xbf\xbd\xed\x9f\xbf\xf4\x8f\xbf\xbf.";

TEST(TextStream, NeverSplitsACharacter) {
  ASSERT_TRUE(is_utf8(kMixed));
  for (size_t first = 1; first <= kMixed.size(); ++first) {
    for (size_t then : {size_t{1}, size_t{2}, size_t{3}, kMixed.size()}) {
      const Result result = stream(kMixed, {}, {first, then});
      EXPECT_EQ(result.text, kMixed);
      for (const std::string& piece : result.pieces) EXPECT_TRUE(is_utf8(piece)) << first << " then " << then;
    }
  }
}

TEST(TextStream, ShowsEveryCharacterAsSoonAsItIsWhole) {
  TextStream out;
  std::string seen;
  for (size_t i = 0; i < kMixed.size(); ++i) {
    seen += out.feed(kMixed.substr(i, 1)).text;
    if (is_utf8(kMixed.substr(0, i + 1))) {
      EXPECT_EQ(seen, kMixed.substr(0, i + 1));
    }
  }
}

TEST(TextStream, InvalidBytesPassAsSoonAsTheyAreCertain) {
  const std::pair<std::string, std::string> cases[] = {
      // fed, shown at once
      {"\x80", "\x80"},
      {"\xff", "\xff"},
      {"\xc0", "\xc0"},
      {"\xc1", "\xc1"},
      {"\xf5", "\xf5"},
      {"\xc3", ""},
      {"\xc3(", "\xc3("},
      {"\xc3\xc3", "\xc3"},
      {"\xe4\xbd", ""},
      {"\xe4\xbd\xc3", "\xe4\xbd"},
      {"\xe0\x9f", "\xe0\x9f"},
      {"\xe0\xa0", ""},
      {"\xed\xa0", "\xed\xa0"},
      {"\xed\x9f", ""},
      {"\xf0\x8f", "\xf0\x8f"},
      {"\xf0\x90\x80", ""},
      {"\xf4\x90", "\xf4\x90"},
      {"\xf4\x8f\xbf", ""},
      {"\xf0\x9f\x98\x80\x80", "\xf0\x9f\x98\x80\x80"},
      {"\x80\x80\x80\x80", "\x80\x80\x80\x80"},
  };
  for (const auto& [fed, shown] : cases) {
    TextStream out;
    EXPECT_EQ(out.feed(fed).text, shown) << testing::PrintToString(fed);
    EXPECT_EQ(shown + out.finish(), fed);
  }
}

TEST(TextStream, AnyBytesComeOutAsTheyWentIn) {
  std::mt19937 random(4);
  for (int round = 0; round < 300; ++round) {
    std::string bytes;
    for (int i = 0; i < 40; ++i)
      bytes += static_cast<char>(random() % 3 == 0 ? random() % 128 : 128 + random() % 128);
    EXPECT_EQ(stream(bytes, {"never seen here, because too long for it"}, {1 + random() % 5}).text, bytes);
  }
}

TEST(TextStream, StopsBeforeTheStopStringHoweverItIsSplit) {
  const std::string text = "Hello\n\nUse it.\n\nUser: more";
  for (size_t first = 1; first <= text.size(); ++first) {
    for (size_t then = 1; then <= text.size(); ++then) {
      const Result result = stream(text, {"\n\nUser:"}, {first, then});
      EXPECT_TRUE(result.stopped);
      EXPECT_EQ(result.text, "Hello\n\nUse it.");
    }
  }
}

TEST(TextStream, HoldsBackOnlyWhatMayBecomeAStopString) {
  TextStream out({"\n\nUser:"});
  EXPECT_EQ(out.feed("Hi\n").text, "Hi");
  EXPECT_EQ(out.feed("\nUse").text, "");
  EXPECT_EQ(out.feed("d").text, "\n\nUsed");
  EXPECT_EQ(out.feed("\n\n\n").text, "\n");
  EXPECT_EQ(out.feed("User").text, "");
  EXPECT_EQ(out.finish(), "\n\nUser");

  TextStream repeated({"aab"});
  EXPECT_EQ(repeated.feed("aaa").text, "a");
  const TextStream::Piece piece = repeated.feed("b");
  EXPECT_EQ(piece.text, "");
  EXPECT_TRUE(piece.stopped);
  EXPECT_TRUE(repeated.stopped());
  EXPECT_EQ(repeated.finish(), "");
}

TEST(TextStream, TheStopThatEndsFirstWinsAndOfThoseTheLongest) {
  for (size_t size = 1; size <= 8; ++size) {
    EXPECT_EQ(stream("xabcdefg", {"bcdef", "cd"}, {size}).text, "xab") << size;
    EXPECT_EQ(stream("xabcdefg", {"cd", "bcd", "d"}, {size}).text, "xa") << size;
    EXPECT_EQ(stream("xabcdefg", {"fgh", "efg"}, {size}).text, "xabcd") << size;
    EXPECT_EQ(stream("xabcdefg", {"x"}, {size}).text, "") << size;
  }
}

TEST(TextStream, StopStringsMatchOnBytes) {
  const std::string text = "ok \xe4\xbd\xa0\xe5\xa5\xbd end";
  for (size_t size = 1; size <= text.size(); ++size) {
    const Result result = stream(text, {"\xe5\xa5\xbd"}, {size});
    EXPECT_TRUE(result.stopped);
    EXPECT_EQ(result.text, "ok \xe4\xbd\xa0");
    for (const std::string& piece : result.pieces) EXPECT_TRUE(is_utf8(piece));
  }
  // It begins with the last byte of a character: the byte is held, and so is the character.
  TextStream out({"\xa0!"});
  EXPECT_EQ(out.feed("\xe4\xbd\xa0").text, "");
  EXPECT_EQ(out.feed("?").text, "\xe4\xbd\xa0?");
}

TEST(TextStream, SplittingNeverMatters) {
  std::mt19937 random(8);
  for (int round = 0; round < 400; ++round) {
    const auto make = [&](size_t size) {
      std::string s;
      for (size_t i = 0; i < size; ++i) s += "ab\xc3\xa9"[random() % 4];
      return s;
    };
    const std::string text = make(30);
    std::vector<std::string> stops;
    for (size_t i = random() % 3 + 1; i > 0; --i) stops.push_back(make(1 + random() % 6));
    const Result whole = stream(text, stops, {text.size()});
    for (size_t size : {1, 2, 3, 7}) {
      const Result split = stream(text, stops, {size});
      ASSERT_EQ(split.text, whole.text);
      ASSERT_EQ(split.stopped, whole.stopped);
    }
    for (const std::string& stop : stops) ASSERT_EQ(whole.text.find(stop), whole.text.npos);
  }
}

TEST(TextStream, RefusesAnEmptyStopString) { EXPECT_THROW(TextStream({"a", ""}), UsageError); }

}  // namespace
}  // namespace rwkvx
