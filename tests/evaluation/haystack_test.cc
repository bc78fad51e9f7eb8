#include "evaluation/haystack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "error_of.h"
#include "evaluation/tokenizers.h"
#include "model/support.h"
#include "retrieval/needle_task.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

TEST(HaystackTest, BeginsAnewUntilThereIsEnough) {
  for (const auto& tokenizer : {make_byte_tokenizer(), test::small_world_tokenizer()}) {
    const std::string once = noise_text(" ");
    const Haystack haystack("noise", once, 1000, *tokenizer);
    EXPECT_EQ(haystack.tokens.size(), 1000u);
    std::string expected;
    for (int i = 0; i < 100; ++i) expected += once;
    const std::string text = tokenizer->decode(haystack.tokens);
    EXPECT_EQ(text, expected.substr(0, text.size()));
    // The same tokens as those of a longer text: no seams.
    const auto longer = tokenizer->encode(expected);
    EXPECT_TRUE(std::equal(haystack.tokens.begin(), haystack.tokens.end(), longer.begin()));
  }
}

TEST(HaystackTest, ShortTextsAreCutAndEmptyOnesRefused) {
  EXPECT_EQ(Haystack("a", "abcdef", 3, *make_byte_tokenizer()).tokens.size(), 3u);
  EXPECT_THAT(error_of([] { Haystack("some file", "", 3, *make_byte_tokenizer()); }), HasSubstr("some file"));
}

TEST(HaystackTest, SentenceEnds) {
  //                                 0123456789
  const Haystack haystack("a", "Ab. Cd! \"Ef?\" gh", 16, *make_byte_tokenizer());
  EXPECT_EQ(haystack.sentence_end_before(0), 0);
  EXPECT_EQ(haystack.sentence_end_before(2), 0);
  EXPECT_EQ(haystack.sentence_end_before(3), 3);
  EXPECT_EQ(haystack.sentence_end_before(6), 3);
  EXPECT_EQ(haystack.sentence_end_before(7), 7);
  EXPECT_EQ(haystack.sentence_end_before(16), 12);
  const Haystack endless("b", std::string(5000, 'x'), 5000, *make_byte_tokenizer());
  EXPECT_EQ(endless.sentence_end_before(4000), 4000);  // none near: left where it is
}

TEST(HaystackTest, FilesAndFolders) {
  const test::TemporaryFolder folder;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  write("b.txt", "second\n");
  write("a.txt", "first\r\n\n");
  const Path root = (folder / "a.txt").parent_path();
  EXPECT_EQ(read_texts(std::vector<Path>{root}), "first\n\nsecond\n\n");
  EXPECT_EQ(read_texts(std::vector<Path>{folder / "b.txt", folder / "a.txt"}), "second\n\nfirst\n\n");
  write("c.txt", "");
  EXPECT_EQ(read_texts(std::vector<Path>{folder / "c.txt"}), "");
  EXPECT_THAT(error_of([&] { read_texts(std::vector<Path>{folder / "missing"}); }), HasSubstr("missing"));
  std::filesystem::create_directory(folder / "empty");
  EXPECT_THAT(error_of([&] { read_texts(std::vector<Path>{folder / "empty"}); }), HasSubstr("no files"));
  std::filesystem::remove(folder / "empty");
}

}  // namespace
}  // namespace rwkvx
