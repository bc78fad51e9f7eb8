#include "base/hash.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace rwkvx {
namespace {

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// Published by the xxHash project: XXH3_64bits with seed 0 of no bytes. A state file carries this number, so
// it may never change.
TEST(Hash, IsXxh3) { EXPECT_EQ(hash64({}), 0x2d06800538d394c2u); }

TEST(Hash, InPiecesEqualsAtOnce) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * i % 251);
  const uint64_t whole = hash64(bytes(text));
  for (const size_t piece : {1, 7, 64, 1000, 4999}) {
    Hash64 hash;
    for (size_t i = 0; i < text.size(); i += piece)
      hash.update(bytes(text).subspan(i, std::min(piece, text.size() - i)));
    EXPECT_EQ(hash.digest(), whole) << piece;
  }
}

TEST(Hash, SeesEveryByte) {
  std::string text(300, 'a');
  const uint64_t before = hash64(bytes(text));
  for (char& c : text) {
    c = 'b';
    EXPECT_NE(hash64(bytes(text)), before);
    c = 'a';
  }
  EXPECT_NE(hash64(bytes(text).first(299)), before);
}

}  // namespace
}  // namespace rwkvx
