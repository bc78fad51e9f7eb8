#include "tokenizer/world_vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/vocabularies.h"

namespace rwkvx {
namespace {

using testing::error_of;

std::string line_of(size_t id, std::string_view bytes, std::string_view end = "\n") {
  const char* const quote = bytes.find('\'') == bytes.npos || bytes.find('"') != bytes.npos ? "'" : "\"";
  return fmt::format("{} b{}{}{} {}{}", id, quote, escape_python_bytes(bytes), quote, bytes.size(), end);
}

std::string file_of(const std::vector<std::string>& tokens, std::string_view end = "\n") {
  std::string text;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) text += line_of(id, tokens[id], end);
  }
  return text;
}

const std::vector<std::string> kTokens =
    testing::with_all_bytes({"", "ab", "", "it's", "say \"it's\"", " 1 ", "\xe4\xbd\xa0"});

TEST(WorldVocabulary, ReadsWhatPythonWrites) {
  const std::string text = file_of(kTokens);
  EXPECT_EQ(parse_world_vocabulary(text, "v.txt"), kTokens);
  EXPECT_EQ(parse_world_vocabulary(text.substr(0, text.size() - 1), "v.txt"), kTokens)
      << "no newline at the end";
  EXPECT_EQ(parse_world_vocabulary(file_of(kTokens, "\r\n"), "v.txt"), kTokens);
  EXPECT_EQ(parse_world_vocabulary("3 '\xe4\xbd\xa0 x' 5\n", "v.txt"),
            (std::vector<std::string>{"", "", "", "\xe4\xbd\xa0 x"}));
}

TEST(WorldVocabulary, ErrorsNameFileAndLine) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "v.txt is empty; a World vocabulary has lines of `id literal length`"},
      {"1 'a' 1\n\n", "v.txt, line 2: '' is not of the form `id literal length`"},
      {"1 'a'\n", "v.txt, line 1: '1 'a'' is not of the form `id literal length`"},
      {"1\n", "v.txt, line 1: '1' is not of the form `id literal length`"},
      {"x 'a' 1\n", "v.txt, line 1: the id 'x' is not a number"},
      {"-1 'a' 1\n", "v.txt, line 1: the id '-1' is not a number"},
      {" 'a' 1\n", "v.txt, line 1: the id '' is not a number"},
      {"99999999999999999999 'a' 1\n", "v.txt, line 1: the id '99999999999999999999' is not a number"},
      {"4000000000 'a' 1\n",
       "v.txt, line 1: id 4000000000 is larger than 1048575, the largest this reader takes"},
      {"0 'a' 1\n", "v.txt, line 1: id 0 is the end of a document and has no bytes; ids start at 1"},
      {"1 'a' 1\n1 'b' 1\n", "v.txt, line 2: id 1 does not come after id 1; ids must rise"},
      {"1 'a' 1\n5 'b' 1\n3 'c' 1", "v.txt, line 3: id 3 does not come after id 5; ids must rise"},
      {"1 'a' one\n", "v.txt, line 1: the length 'one' is not a number"},
      {"1 'a' 2\n", "v.txt, line 1: token 1 has 1 bytes, but its length column says 2"},
      {"1 '\xc3\xa9' 1\n", "v.txt, line 1: token 1 has 2 bytes, but its length column says 1"},
      {"1 '' 0\n", "v.txt, line 1: token 1 has no bytes"},
      {"1 a 1\n", "v.txt, line 1: a Python literal in quotes is needed, not a"},
      {"1 'a' 1\n2 '\\q' 2\n", "v.txt, line 2: unknown escape \\q"},
      {"1 __import__('os').abort() 1\n",
       "v.txt, line 1: a Python literal in quotes is needed, not __import__('os').abort()"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_EQ(error_of([&] { parse_world_vocabulary(text, "v.txt"); }), message);
  }
}

TEST(WorldVocabulary, ReadsAFile) {
  const Path path = Path(::testing::TempDir()) / "rwkvx_world_vocabulary_test.txt";
  const auto write = [&](const std::string& text) { std::ofstream(path, std::ios::binary) << text; };

  write(file_of(kTokens));
  const auto tokenizer = read_world_vocabulary(path);
  EXPECT_EQ(tokenizer->vocab_size(), static_cast<int64_t>(kTokens.size()));
  EXPECT_EQ(tokenizer->encode("it's ab"), (std::vector<TokenId>{260, ' ' + 1, 258}));

  write("1 'a' 1\n");
  EXPECT_EQ(error_of([&] { read_world_vocabulary(path); }),
            path.string() + ": no token stands for the single byte \\x00; a vocabulary must have all 256");
  write("garbage");
  EXPECT_EQ(error_of([&] { read_world_vocabulary(path); }),
            path.string() + ", line 1: 'garbage' is not of the form `id literal length`");
  std::filesystem::remove(path);
  EXPECT_THAT(error_of([&] { read_world_vocabulary(path); }), ::testing::HasSubstr(path.string()));
}

}  // namespace
}  // namespace rwkvx
