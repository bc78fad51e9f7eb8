#include "tokenizer/gguf_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tokenizer/vocabularies.h"

namespace rwkvx {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
using testing::with_all_bytes;

void expect_same(const Tokenizer& a, const Tokenizer& b) {
  ASSERT_EQ(a.vocab_size(), b.vocab_size());
  EXPECT_EQ(a.name(), b.name());
  EXPECT_EQ(a.end_of_document(), b.end_of_document());
  for (TokenId id = 0; id < a.vocab_size(); ++id) ASSERT_EQ(a.token_bytes(id), b.token_bytes(id)) << id;
}

TEST(GgufVocabulary, WritesWhatLlamaCppsConverterWrites) {
  const auto world = make_world_tokenizer(with_all_bytes({"ab", "", "it's", "\xe4\xbd"}));
  const GgufVocabulary vocabulary = to_gguf_vocabulary(*world, 263);
  ASSERT_EQ(vocabulary.tokens.size(), 263u);
  EXPECT_EQ(vocabulary.tokens[0], "<s>");
  EXPECT_EQ(vocabulary.tokens[1], "\\x00");
  EXPECT_EQ(vocabulary.tokens['\n' + 1], "\\n");
  EXPECT_EQ(vocabulary.tokens['\'' + 1], "'");
  EXPECT_EQ(vocabulary.tokens['\\' + 1], "\\\\");
  EXPECT_EQ(vocabulary.tokens[258], "[PAD258]");
  EXPECT_EQ(vocabulary.tokens[260], "\\xe4\\xbd");
  EXPECT_EQ(vocabulary.tokens[262], "[PAD262]");
  EXPECT_EQ(vocabulary.types[0], 3);
  EXPECT_EQ(vocabulary.types[1], 1);
  EXPECT_EQ(vocabulary.types[258], 5);
  EXPECT_EQ(vocabulary.types[262], 5);
  EXPECT_THAT(error_of([&] { to_gguf_vocabulary(*world, 260); }),
              HasSubstr("261 tokens and the model only 260"));
}

TEST(GgufVocabulary, ReadsBackWithAndWithoutTypes) {
  const auto world = make_world_tokenizer(with_all_bytes({"ab", "", "it's", "<s>", "[PAD7]", "'x'"}));
  GgufVocabulary vocabulary = to_gguf_vocabulary(*world, 300);
  expect_same(*from_gguf_vocabulary(vocabulary), *world);
  vocabulary.types.clear();
  expect_same(*from_gguf_vocabulary(vocabulary), *world);

  const auto byte = make_byte_tokenizer();
  expect_same(*from_gguf_vocabulary(to_gguf_vocabulary(*byte, 256)), *byte);
}

TEST(GgufVocabulary, ReadsWholeLiterals) {
  // As in public byte-level files: '\x00', "'", b'\xff'.
  GgufVocabulary vocabulary;
  for (int i = 0; i < 256; ++i) {
    const std::string inside = escape_python_bytes(std::string(1, static_cast<char>(i)));
    vocabulary.tokens.push_back(i >= 128 ? "b'" + inside + "'" : i == '\'' ? "\"'\"" : "'" + inside + "'");
  }
  vocabulary.types.assign(256, GgufVocabulary::kNormal);
  expect_same(*from_gguf_vocabulary(vocabulary), *make_byte_tokenizer());

  vocabulary.tokens.insert(vocabulary.tokens.begin(), "<s>");
  vocabulary.types.insert(vocabulary.types.begin(), GgufVocabulary::kControl);
  expect_same(*from_gguf_vocabulary(vocabulary), *make_world_tokenizer(with_all_bytes()));
}

TEST(GgufVocabulary, ErrorsNameTheToken) {
  GgufVocabulary vocabulary = to_gguf_vocabulary(*make_world_tokenizer(with_all_bytes()), 257);
  vocabulary.tokens[100] = "\\q";
  EXPECT_EQ(error_of([&] { from_gguf_vocabulary(vocabulary); }),
            "token 100 of the vocabulary, '\\q': unknown escape \\q");
  vocabulary.types.pop_back();
  EXPECT_EQ(error_of([&] { from_gguf_vocabulary(vocabulary); }),
            "the file has 257 tokens but 256 token types");
  EXPECT_THAT(error_of([&] { from_gguf_vocabulary({}); }), HasSubstr("no token stands for the single byte"));
  EXPECT_THAT(error_of([&] {
                from_gguf_vocabulary({{"<s>", "[PAD1]"}, {}});
              }),
              HasSubstr("no token stands for"));
}

}  // namespace
}  // namespace rwkvx
