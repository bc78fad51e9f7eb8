#include "training/pack.h"

#include <gmock/gmock.h>

#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using Documents = std::vector<std::vector<TokenId>>;

class PackTest : public ::testing::Test {
 protected:
  TokenFile input(const Documents& documents) const {
    TokenFileWriter writer(folder_ / "in", TokenType::u16);
    for (const auto& document : documents) {
      writer.append(document);
      writer.end_document();
    }
    writer.commit();
    return TokenFile::open(folder_ / "in");
  }
  Documents output() const {
    const TokenFile file = TokenFile::open(folder_ / "out");
    Documents all;
    for (uint64_t i = 0; i < file.documents(); ++i) {
      all.emplace_back(file.document(i).size);
      file.read(file.document(i).begin, all.back());
    }
    return all;
  }
  const test::TemporaryFolder folder_;
};

const Documents kDocuments{{1, 2, 3}, {4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, {14}, {15, 16, 17, 18}, {19, 20}};

TEST_F(PackTest, LongOnesAreCutShortOnesJoined) {
  const PackReport report = pack_tokens(input(kDocuments), folder_ / "out", {.length = 4});
  EXPECT_EQ(output(),
            (Documents{{4, 5, 6, 7}, {8, 9, 10, 11}, {1, 2, 3, 12}, {15, 16, 17, 18}, {13, 14, 19, 20}}));
  EXPECT_EQ(report.documents, 5u);
  EXPECT_EQ(report.long_sequences, 3u);
  EXPECT_EQ(report.short_sequences, 2u);
  EXPECT_EQ(report.left_out, 0u);
}

TEST_F(PackTest, MarksGoWithTheirTokens) {
  TokenFileWriter writer(folder_ / "in", TokenType::u16);
  for (const auto& document : kDocuments) {
    std::vector<TokenMark> marks;
    for (const TokenId id : document) marks.push_back({static_cast<float>(id), id % 3 == 0});
    writer.append(document, marks);
    writer.end_document();
  }
  writer.commit();
  pack_tokens(TokenFile::open(folder_ / "in"), folder_ / "out", {.length = 4});
  const TokenFile packed = TokenFile::open(folder_ / "out");
  ASSERT_TRUE(packed.marked());
  std::vector<TokenId> tokens(20);
  std::vector<TokenMark> marks(20);
  packed.read(0, tokens);
  packed.read_marks(0, marks);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(marks[i].weight, static_cast<float>(tokens[i]));
    EXPECT_EQ(marks[i].reset, tokens[i] % 3 == 0);
  }
}

TEST_F(PackTest, OnlyLongOnes) {
  const PackReport report = pack_tokens(input(kDocuments), folder_ / "out", {.length = 4, .long_only = true});
  EXPECT_EQ(output(), (Documents{{4, 5, 6, 7}, {8, 9, 10, 11}, {15, 16, 17, 18}}));
  EXPECT_EQ(report.left_out, 8u);
}

TEST_F(PackTest, ADocumentOverSeveralSequences) {
  // Shorter than a sequence, but crossing the end of one.
  pack_tokens(input({{1, 2}, {3, 4, 5, 6}, {7, 8, 9, 10}}), folder_ / "out", {.length = 5});
  EXPECT_EQ(output(), (Documents{{1, 2, 3, 4, 5}, {6, 7, 8, 9, 10}}));
}

TEST_F(PackTest, TheShortestAndTheRestAreCounted) {
  const PackReport report = pack_tokens(input(kDocuments), folder_ / "out", {.length = 8, .shortest = 3});
  EXPECT_EQ(output(), (Documents{{4, 5, 6, 7, 8, 9, 10, 11}, {1, 2, 3, 12, 13, 15, 16, 17}}));
  EXPECT_EQ(report.left_out, 4u);  // 14, 19, 20 and 18
}

TEST_F(PackTest, NothingFits) {
  EXPECT_THAT(
      rwkvx::testing::error_of([&] { pack_tokens(input(kDocuments), folder_ / "out", {.length = 21}); }),
      ::testing::HasSubstr("fill no sequence of 21"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.bin"));
}

}  // namespace
}  // namespace rwkvx
