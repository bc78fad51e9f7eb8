// Token files: the layout byte by byte, and files that are damaged or lie.
#include "training/token_file.h"

#include <gmock/gmock.h>

#include <cstring>
#include <fstream>
#include <numeric>

#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

void write(const Path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

template <typename T>
std::string raw(std::initializer_list<T> values) {
  std::string out(values.size() * sizeof(T), '\0');
  std::memcpy(out.data(), values.begin(), out.size());
  return out;
}

/// Two documents of u16 tokens, 3 and 2, as Megatron's builder writes them.
std::string good_index() {
  return std::string("MMIDIDX\0\0", 9) + raw<uint64_t>({1}) + raw<uint8_t>({8}) + raw<uint64_t>({2, 3}) +
         raw<int32_t>({3, 2}) + raw<int64_t>({0, 6}) + raw<int64_t>({0, 1, 2});
}
std::string good_data() { return raw<uint16_t>({7, 8, 65535, 1, 0}); }

class TokenFileTest : public ::testing::Test {
 protected:
  Path name() const { return folder_ / "data"; }
  void put(const std::string& index, const std::string& data) const {
    write(folder_ / "data.idx", index);
    write(folder_ / "data.bin", data);
  }
  std::string error(const std::string& index, const std::string& data) const {
    put(index, data);
    return error_of([&] { TokenFile::open(name()); });
  }
  const test::TemporaryFolder folder_;
};

std::vector<TokenId> all(const TokenFile& file) {
  std::vector<TokenId> tokens(file.tokens());
  file.read(0, tokens);
  return tokens;
}

TEST_F(TokenFileTest, WritesWhatMegatronReads) {
  TokenFileWriter writer(name(), TokenType::u16);
  writer.append(std::vector<TokenId>{7});
  writer.append(std::vector<TokenId>{8, 65535});
  writer.end_document();
  writer.end_document();  // no tokens: no document
  writer.append(std::vector<TokenId>{1, 0});
  EXPECT_TRUE(!std::filesystem::exists(folder_ / "data.bin") &&
              !std::filesystem::exists(folder_ / "data.idx"));
  writer.commit();
  EXPECT_EQ(read_file(folder_ / "data.idx"), good_index());
  EXPECT_EQ(read_file(folder_ / "data.bin"), good_data());
  EXPECT_THAT(folder_.files(), ::testing::SizeIs(2));
}

TEST_F(TokenFileTest, ReadsByAnyOfItsNames) {
  put(good_index(), good_data());
  for (const char* shown : {"data", "data.bin", "data.idx"}) {
    const TokenFile file = TokenFile::open(folder_ / shown);
    EXPECT_EQ(file.documents(), 2u);
    EXPECT_EQ(all(file), (std::vector<TokenId>{7, 8, 65535, 1, 0}));
    EXPECT_EQ(file.document(1).begin, 3u);
    EXPECT_EQ(file.document(1).size, 2u);
  }
}

TEST_F(TokenFileTest, EveryTypeThereAndBack) {
  for (const TokenType type :
       {TokenType::u8, TokenType::i8, TokenType::i16, TokenType::u16, TokenType::i32, TokenType::i64}) {
    const uint64_t bits = 8 * bytes_of(type);
    const bool is_signed = type != TokenType::u8 && type != TokenType::u16;
    const auto largest = static_cast<TokenId>(
        std::min<uint64_t>(INT32_MAX - 1, (uint64_t{1} << (bits - (is_signed ? 1 : 0))) - 1));
    const std::vector<TokenId> tokens{0, 1, largest, largest - 1, 100};
    TokenFileWriter writer(name(), type);
    writer.append(tokens);
    writer.commit();
    const TokenFile file = TokenFile::open(name());
    EXPECT_EQ(file.type(), type);
    EXPECT_EQ(all(file), tokens) << rwkvx::name(type);
  }
}

TEST_F(TokenFileTest, TokensOutsideTheVocabularyAreNamed) {
  put(good_index(), good_data());
  const TokenFile file = TokenFile::open(name());
  std::vector<TokenId> tokens(5);
  EXPECT_THAT(error_of([&] { file.read(0, tokens, 65535); }),
              ::testing::AllOf(HasSubstr("data.bin"), HasSubstr("token 65535 at position 2")));
  std::string negative = good_index();
  negative[17] = 3;  // i16
  put(negative, good_data());
  EXPECT_THAT(error_of([&] { TokenFile::open(name()).read(0, tokens); }),
              HasSubstr("token -1 at position 2"));
}

TEST_F(TokenFileTest, CutAnywhere) {
  const std::string index = good_index(), data = good_data();
  for (size_t size = 0; size < index.size(); ++size)
    EXPECT_THAT(error(index.substr(0, size), data), HasSubstr("data.idx")) << size;
  for (size_t size = 0; size < data.size(); ++size)
    EXPECT_THAT(error(index, data.substr(0, size)), HasSubstr("data")) << size;
  EXPECT_THAT(error(index + "x", data), HasSubstr("data.idx"));
  EXPECT_THAT(error(index, data + "xx"), HasSubstr("do not belong together"));
}

TEST_F(TokenFileTest, IndexesThatLie) {
  const auto with = [](size_t offset, const std::string& bytes) {
    std::string index = good_index();
    return index.replace(offset, bytes.size(), bytes);
  };
  const std::string data = good_data();
  EXPECT_THAT(error(with(0, "X"), data), HasSubstr("MMIDIDX"));
  EXPECT_THAT(error(with(9, raw<uint64_t>({2})), data), HasSubstr("version 2"));
  for (const uint8_t code : {0, 6, 7, 9, 255})
    EXPECT_THAT(error(with(17, raw<uint8_t>({code})), data), HasSubstr("type code"));
  for (const uint64_t count :
       {uint64_t{0}, uint64_t{1}, uint64_t{4}, UINT64_MAX, UINT64_MAX / 12, UINT64_MAX / 8}) {
    EXPECT_THAT(error(with(18, raw<uint64_t>({count})), data), HasSubstr("cut or damaged")) << count;
    EXPECT_THAT(error(with(26, raw<uint64_t>({count})), data), HasSubstr("cut or damaged")) << count;
  }
  EXPECT_THAT(error(with(34, raw<int32_t>({-1})), data), HasSubstr("sequence 0"));
  EXPECT_THAT(error(with(34, raw<int32_t>({INT32_MAX})), data), HasSubstr("sequence 0"));
  EXPECT_THAT(error(with(34, raw<int32_t>({2})), data), HasSubstr("counts 4 tokens"));
  for (const int64_t begin : {int64_t{-2}, int64_t{7}, int64_t{8}, INT64_MAX, INT64_MIN})
    EXPECT_THAT(error(with(50, raw<int64_t>({begin})), data), HasSubstr("sequence 1")) << begin;
}

TEST_F(TokenFileTest, MissingParts) {
  EXPECT_THAT(error_of([&] { TokenFile::open(name()); }), HasSubstr("data.idx"));
  write(folder_ / "data.idx", good_index());
  EXPECT_THAT(error_of([&] { TokenFile::open(name()); }), HasSubstr("data.bin"));
}

TEST_F(TokenFileTest, NothingIsLeftOfAWriterThatStops) {
  put(good_index(), good_data());
  {
    TokenFileWriter writer(name(), TokenType::u16);
    writer.append(std::vector<TokenId>(100, 3));
  }
  EXPECT_EQ(read_file(folder_ / "data.bin"), good_data());
  EXPECT_THAT(folder_.files(), ::testing::SizeIs(2));
}

TEST_F(TokenFileTest, MarksBesideTheTokens) {
  const std::vector<TokenId> tokens{7, 8};
  TokenFileWriter writer(name(), TokenType::u16);
  writer.append(std::vector<TokenId>{1});  // before the first marks
  writer.append(tokens, std::vector<TokenMark>{{0.5f, true}, {3, false}});
  writer.end_document();
  writer.append(std::vector<TokenId>{2});  // and behind the last
  writer.commit();
  EXPECT_EQ(read_file(folder_ / "data.weights"),
            std::string("RWKVXTW\1") + raw<uint16_t>({0x3c00, 0xb800, 0x4200, 0x3c00}));
  const TokenFile file = TokenFile::open(folder_ / "data.weights");
  ASSERT_TRUE(file.marked());
  std::vector<TokenMark> marks(2);
  file.read_marks(1, marks);
  EXPECT_EQ(marks[0].weight, 0.5f);
  EXPECT_TRUE(marks[0].reset);
  EXPECT_EQ(marks[1].weight, 3);
  EXPECT_FALSE(marks[1].reset);
}

TEST_F(TokenFileTest, MarksThatDoNotFit) {
  put(good_index(), good_data());
  const std::string good = std::string("RWKVXTW\1") + raw<uint16_t>({0x3c00, 0x3c00, 0x3c00, 0x3c00, 0x7c00});
  for (const std::string& bytes : {std::string(), good.substr(0, 7), good.substr(0, 16), good.substr(0, 17),
                                   good + "xx", "X" + good.substr(1)}) {
    write(folder_ / "data.weights", bytes);
    EXPECT_THAT(error_of([&] { TokenFile::open(name()); }), HasSubstr("data.weights")) << bytes.size();
  }
  write(folder_ / "data.weights", good);
  const TokenFile file = TokenFile::open(name());
  std::vector<TokenMark> marks(5);
  EXPECT_THAT(error_of([&] { file.read_marks(0, marks); }), HasSubstr("weight of token 4"));
}

}  // namespace
}  // namespace rwkvx
