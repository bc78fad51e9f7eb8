#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabularies.h"

namespace rwkvx {
namespace {

TEST(ByteTokenizer, TokenIsByteInBothDirections) {
  const auto tokenizer = make_byte_tokenizer();
  std::string all;
  std::vector<TokenId> ids;
  for (int i = 0; i < 256; ++i) {
    all += static_cast<char>(i);
    ids.push_back(i);
  }
  EXPECT_EQ(tokenizer->encode(all), ids);
  EXPECT_EQ(tokenizer->decode(ids), all);
  EXPECT_EQ(tokenizer->name(), "byte");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->end_of_document(), -1);
}

TEST(ByteTokenizer, EncodeAppends) {
  std::vector<TokenId> ids = {7};
  make_byte_tokenizer()->encode("ab", ids);
  EXPECT_EQ(ids, (std::vector<TokenId>{7, 'a', 'b'}));
}

TEST(ByteTokenizer, IdsOutOfRangeAreErrors) {
  const auto tokenizer = make_byte_tokenizer();
  for (TokenId id : {-1, 256, 65536}) {
    EXPECT_EQ(testing::error_of([&] { tokenizer->decode(std::vector<TokenId>{id}); }),
              fmt::format("token id {} is not in the vocabulary, whose ids run from 0 to 255", id));
  }
}

}  // namespace
}  // namespace rwkvx
