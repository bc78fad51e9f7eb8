#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabularies.h"

namespace rwkvx {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::naive_encode;
using testing::with_all_bytes;

TEST(WorldTokenizer, TakesTheLongestMatch) {
  // 257.. in this order. "abcde" tempts a search that does not come back to "ab" when "abcd" does not go on.
  const auto tokenizer = make_world_tokenizer(with_all_bytes({"ab", "abcde", "cd", "dx"}));
  const TokenId x = 'x' + 1, c = 'c' + 1;
  EXPECT_EQ(tokenizer->encode("abcde"), (std::vector<TokenId>{258}));
  EXPECT_EQ(tokenizer->encode("abcdx"), (std::vector<TokenId>{257, 259, x}));
  EXPECT_EQ(tokenizer->encode("abcd"), (std::vector<TokenId>{257, 259}));
  EXPECT_EQ(tokenizer->encode("abc"), (std::vector<TokenId>{257, c}));
}

TEST(WorldTokenizer, EverySingleByteAndEveryPair) {
  const auto tokens = with_all_bytes({"ab", "a\xff", std::string(2, '\0')});
  const auto tokenizer = make_world_tokenizer(tokens);
  for (int a = 0; a < 256; ++a) {
    const std::string one(1, static_cast<char>(a));
    ASSERT_EQ(tokenizer->encode(one), (std::vector<TokenId>{a + 1}));
    ASSERT_EQ(tokenizer->token_bytes(a + 1), one);
    for (int b = 0; b < 256; ++b) {
      const std::string two = one + static_cast<char>(b);
      ASSERT_EQ(tokenizer->encode(two), naive_encode(tokens, two));
    }
  }
}

TEST(WorldTokenizer, EqualsTheNaiveSearchOnRandomVocabularies) {
  std::mt19937 random(20230424);
  for (int round = 0; round < 60; ++round) {
    const unsigned alphabet = round % 3 == 0 ? 2 : round % 3 == 1 ? 7 : 256;
    const auto tokens = testing::random_vocabulary(random, 1 + random() % 400, 2 + random() % 12, alphabet);
    const auto tokenizer = make_world_tokenizer(tokens);
    std::string text;
    while (text.size() < 500) {
      // Whole tokens between noise, so that long matches happen in the large alphabet too.
      text += random() % 2 == 0 ? tokens[random() % tokens.size()]
                                : testing::random_bytes(random, random() % 5, alphabet);
    }
    const std::vector<TokenId> ids = tokenizer->encode(text);
    ASSERT_EQ(ids, naive_encode(tokens, text)) << "round " << round;
    ASSERT_EQ(tokenizer->decode(ids), text) << "round " << round;
  }
}

TEST(WorldTokenizer, AnyBytesRoundTrip) {
  const auto tokenizer =
      make_world_tokenizer(with_all_bytes({"\xc3\xa9", "\xe4\xbd\xa0\xe5\xa5\xbd", "the "}));
  for (const std::string& text :
       {std::string(), std::string("\xc3"), std::string("\xff\xfe\x80"), std::string("a\0b", 3),
        std::string("\xe4\xbd\xa0\xe5\xa5"), std::string("\xe4\xbd\xa0\xe5\xa5\xbd the the")}) {
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  EXPECT_TRUE(tokenizer->encode("").empty());
}

TEST(WorldTokenizer, OneMegabyteOfOneByte) {
  const std::string run(128, ' '), text((1 << 20) + 5, ' ');
  const auto tokenizer = make_world_tokenizer(with_all_bytes({run}));
  std::vector<TokenId> expected((1 << 20) / 128, 257);
  expected.insert(expected.end(), 5, ' ' + 1);
  EXPECT_EQ(tokenizer->encode(text), expected);
}

TEST(WorldTokenizer, AVocabularyLargerThanItsTables) {
  // All pairs and many triples: nodes with 256 children, a trie of more than 2^16 nodes.
  std::vector<std::string> more;
  for (int a = 0; a < 256; ++a) {
    for (int b = 0; b < 256; ++b) {
      more.push_back({static_cast<char>(a), static_cast<char>(b)});
      if (b % 4 == 0) more.push_back({static_cast<char>(b), static_cast<char>(a), static_cast<char>(a ^ b)});
    }
  }
  const auto tokens = with_all_bytes(more);
  const auto tokenizer = make_world_tokenizer(tokens);
  for (size_t i = 1; i < tokens.size(); ++i) {
    ASSERT_EQ(tokenizer->encode(tokens[i]), (std::vector<TokenId>{static_cast<TokenId>(i)}));
  }
  EXPECT_EQ(tokenizer->encode("\x02\x04\x05"), naive_encode(tokens, "\x02\x04\x05"));
}

TEST(WorldTokenizer, IdsWithoutBytes) {
  auto tokens = with_all_bytes({"", "", "ab"});
  const auto tokenizer = make_world_tokenizer(tokens);
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_EQ(tokenizer->end_of_document(), 0);
  EXPECT_EQ(tokenizer->decode(std::vector<TokenId>{0, 259, 257, 258, 'c' + 1}), "abc");
  EXPECT_THAT(error_of([&] { tokenizer->token_bytes(260); }), HasSubstr("token id 260"));
  EXPECT_THAT(error_of([&] { tokenizer->token_bytes(-1); }), HasSubstr("token id -1"));

  tokens[0] = "xyz";
  EXPECT_EQ(make_world_tokenizer(tokens)->end_of_document(), -1);
}

TEST(WorldTokenizer, RefusesVocabulariesThatCannotWork) {
  auto tokens = with_all_bytes();
  tokens[0x41 + 1] = "";
  EXPECT_EQ(error_of([&] { make_world_tokenizer(tokens); }),
            "no token stands for the single byte \\x41; a vocabulary must have all 256");
  EXPECT_EQ(error_of([&] {
              make_world_tokenizer(with_all_bytes({"ab", "cd", "ab"}));
            }),
            "tokens 257 and 259 have the same bytes 'ab'; every token of a vocabulary must differ");
  EXPECT_THAT(error_of([&] { make_world_tokenizer({}); }), HasSubstr("no token stands for the single byte"));
  EXPECT_THAT(error_of([&] { make_world_tokenizer({"", "", ""}); }), HasSubstr("no token stands"));
  // Equal in their first eight bytes, and with trailing zeros that a prefix comparison cannot tell apart.
  EXPECT_EQ(error_of([&] {
              make_world_tokenizer(with_all_bytes({"a", std::string("a\0", 2)}));
            }),
            "tokens 98 and 257 have the same bytes 'a'; every token of a vocabulary must differ");
  EXPECT_EQ(error_of([&] {
              make_world_tokenizer(with_all_bytes({std::string("a\0", 2), "12345678", "123456789"}));
            }),
            "");
}

}  // namespace
}  // namespace rwkvx
