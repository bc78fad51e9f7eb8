// Text to tokens: the parallel pieces give what one pass over each document gives.
#include "training/prepare.h"

#include <gmock/gmock.h>

#include <fstream>

#include "base/random.h"
#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::AllOf;
using ::testing::HasSubstr;

/// Single bytes and strings of them, so that the longest match often reaches far.
std::shared_ptr<const Tokenizer> small_world() {
  std::vector<std::string> tokens{""};
  for (int i = 0; i < 256; ++i) tokens.emplace_back(1, static_cast<char>(i));
  for (const char* word : {"ab", "abc", "abcab", "bca", "cc", "\n\n", " a", "a\nb"})
    tokens.emplace_back(word);
  return make_world_tokenizer(tokens);
}

std::string random_text(size_t size, uint64_t seed, std::string_view letters) {
  Random random(seed);
  std::string text(size, ' ');
  for (char& c : text) c = letters[random.next() % letters.size()];
  return text;
}

using Documents = std::vector<std::vector<TokenId>>;

class PrepareTest : public ::testing::Test {
 protected:
  Path with(const std::string& name, const std::string& bytes) const {
    std::ofstream(folder_ / name, std::ios::binary) << bytes;
    return folder_ / name;
  }
  PrepareReport prepare(const std::vector<Path>& inputs, const PrepareOptions& options) const {
    return prepare_tokens(inputs, folder_ / "out", *tokenizer_, options);
  }
  /// The documents of the output.
  std::vector<std::vector<TokenId>> documents() const {
    const TokenFile file = TokenFile::open(folder_ / "out");
    std::vector<std::vector<TokenId>> all;
    for (uint64_t i = 0; i < file.documents(); ++i) {
      all.emplace_back(file.document(i).size);
      file.read(file.document(i).begin, all.back());
    }
    return all;
  }
  std::vector<TokenId> tokens_of(const std::string& text, std::optional<TokenId> end) const {
    std::vector<TokenId> tokens = tokenizer_->encode(text);
    if (end) tokens.push_back(*end);
    return tokens;
  }
  const test::TemporaryFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_ = small_world();
};

TEST_F(PrepareTest, PiecesOfALongTextGiveTheTokensOfTheWhole) {
  const std::string text = random_text(20000, 1, "abc \nx");
  const Path file = with("text.txt", text);
  for (const size_t piece : {size_t{1}, size_t{7}, size_t{500}, size_t{1} << 20}) {
    PrepareOptions options;
    options.document_end = 0;
    options.piece_bytes = piece;
    options.threads = 3;
    const PrepareReport report = prepare({file}, options);
    EXPECT_EQ(documents(), (Documents{tokens_of(text, 0)})) << piece;
    EXPECT_EQ(report.documents, 1u);
    EXPECT_EQ(report.bytes, text.size());
    EXPECT_EQ(report.tokens, tokens_of(text, 0).size());
  }
}

TEST_F(PrepareTest, ATextThatCanBeCutNowhere) {
  const std::string text = random_text(3000, 2, "ac");
  PrepareOptions options;
  options.piece_bytes = 10;
  std::vector<std::string> tokens{""};
  for (int i = 0; i < 256; ++i) tokens.emplace_back(1, static_cast<char>(i));
  for (const char* pair : {"aa", "ac", "ca", "cc"}) tokens.emplace_back(pair);
  const auto tokenizer = make_world_tokenizer(tokens);
  prepare_tokens(std::vector{with("text", text)}, folder_ / "out", *tokenizer, options);
  EXPECT_EQ(documents(), (Documents{tokenizer->encode(text)}));
}

TEST_F(PrepareTest, JsonLines) {
  const Path file =
      with("a.jsonl",
           "{\"text\": \"abc\\u00e4\\n\", \"meta\": {\"text\": \"no\", \"x\": [1, 2.5, null]}}\n"
           "\n   \r\n"
           "{\"id\": 3, \"text\": \"\"}\r\n"
           "{\"text\": \"\\ud83d\\ude00\"}");
  PrepareOptions options;
  options.document_end = 0;
  options.piece_bytes = 5;
  const PrepareReport report = prepare({file}, options);
  EXPECT_EQ(documents(), (Documents{tokens_of("abcä\n", 0), tokens_of("😀", 0)}));
  EXPECT_EQ(report.empty_documents, 1u);
  EXPECT_EQ(report.documents, 2u);
}

TEST_F(PrepareTest, ManyFilesKeepTheirOrder) {
  std::string lines;
  std::vector<std::vector<TokenId>> expected;
  for (int i = 0; i < 300; ++i) {
    const std::string text = random_text(1 + static_cast<size_t>(i) % 50, static_cast<uint64_t>(i), "abc");
    lines += "{\"body\": \"" + text + "\"}\n";
    expected.push_back(tokens_of(text, std::nullopt));
  }
  PrepareOptions options;
  options.text.field = "body";
  options.text.separator = "<|>";
  options.piece_bytes = 64;
  options.threads = 4;
  const Path first = with("1.jsonl", lines), second = with("2.txt", "<|>ab<|><|>c\n<|>");
  prepare({first, second, first}, options);
  const size_t count = expected.size();
  expected.push_back(tokens_of("ab", std::nullopt));
  expected.push_back(tokens_of("c\n", std::nullopt));
  for (size_t i = 0; i < count; ++i) expected.push_back(expected[i]);
  EXPECT_EQ(documents(), expected);
}

TEST_F(PrepareTest, BadLinesAreNamed) {
  const std::pair<const char*, const char*> bad[] = {
      {"{\"text\": \"a\"", "JSON"},           {"{\"text\": 5}", "\"text\" is a number"},
      {"{\"text\": null}", "null"},           {"{\"text\": [\"a\"]}", "a list"},
      {"{\"texts\": \"a\"}", "no \"text\""},  {"[\"text\"]", "a list instead of an object"},
      {"7", "a number instead of an object"}, {"{\"text\": \"a\", \"text\": \"b\"}", "twice"},
      {"{\"text\": \"\xff\"}", "JSON"},       {"{\"text\": \"\\ud800\"}", "JSON"},
      {"{\"text\": \"a\"} {}", "JSON"},       {"plain", "JSON"}};
  for (const auto& [line, message] : bad) {
    const Path file =
        with("bad.jsonl", std::string("{\"text\": \"fine\"}\n\n") + line + "\n{\"text\": \"x\"}\n");
    EXPECT_THAT(error_of([&] { prepare({file}, {}); }),
                AllOf(HasSubstr("bad.jsonl, line 3: "), HasSubstr(message)))
        << line;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "out.bin"));
    PrepareOptions options;
    options.skip_bad_lines = true;
    EXPECT_EQ(prepare({file}, options).bad_lines, 1u);
    EXPECT_EQ(documents(), (Documents{tokens_of("fine", {}), tokens_of("x", {})}));
    std::filesystem::remove(folder_ / "out.bin");
  }
  EXPECT_THAT(error_of([&] { prepare({with("deep.jsonl", std::string(100000, '['))}, {}); }),
              HasSubstr("line 1"));
  EXPECT_THAT(error_of([&] { prepare({with("deeper.jsonl", "{\"x\": " + std::string(100000, '['))}, {}); }),
              HasSubstr("1000 levels"));
}

TEST_F(PrepareTest, NothingToDo) {
  EXPECT_THAT(error_of([&] { prepare({with("empty", "")}, {}); }), HasSubstr("no text"));
  EXPECT_THAT(error_of([&] { prepare({folder_ / "none"}, {}); }), HasSubstr("none"));
}

TEST_F(PrepareTest, StopsWhenProgressThrows) {
  const Path file = with("text", random_text(5000, 3, "abx"));
  PrepareOptions options;
  options.piece_bytes = 10;
  struct Stop {};
  EXPECT_THROW(prepare_tokens(std::vector{file}, folder_ / "out", *tokenizer_, options,
                              [](uint64_t done, uint64_t) {
                                if (done > 1000) throw Stop();
                              }),
               Stop);
  EXPECT_EQ(folder_.files(), (std::vector<std::string>{"text"}));
}

TEST_F(PrepareTest, SegmentsHaveWeightsAndResets) {
  const Path plain = with("a.jsonl", "{\"text\": \"cc\"}\n");
  const Path marked = with("b.jsonl",
                           "{\"text\": \"bb\"}\n"
                           "{\"segments\": [{\"text\": \"ab\", \"weight\": 0.25}, {\"text\": \"\"}, "
                           "{\"text\": \"c\", \"weight\": 2, "
                           "\"reset\": true}, {\"text\": \"bb\", \"weight\": 0}]}\n"
                           "{\"segments\": [{\"text\": \"\"}]}\n{\"text\": \"b\"}\n");
  PrepareOptions options;
  options.document_end = 0;
  const PrepareReport report = prepare({plain, marked, plain}, options);
  EXPECT_EQ(report.documents, 5u);
  EXPECT_EQ(report.empty_documents, 1u);
  const TokenFile file = TokenFile::open(folder_ / "out");
  ASSERT_TRUE(file.marked());
  // "ab" and "c" are tokenized apart, though "abc" is a token.
  const Documents expected = {tokens_of("cc", 0),
                              tokens_of("bb", 0),
                              {tokenizer_->encode("ab")[0], tokenizer_->encode("c")[0],
                               tokenizer_->encode("b")[0], tokenizer_->encode("b")[0], 0},
                              tokens_of("b", 0),
                              tokens_of("cc", 0)};
  EXPECT_EQ(documents(), expected);
  std::vector<TokenMark> marks(file.tokens());
  file.read_marks(0, marks);
  std::vector<float> weights;
  std::vector<bool> resets;
  for (const TokenMark& mark : marks) {
    weights.push_back(mark.weight);
    resets.push_back(mark.reset);
  }
  EXPECT_EQ(weights, (std::vector<float>{1, 1, 1, 1, 1, 0.25, 2, 0, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(resets, (std::vector<bool>{0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}));

  // Text without segments leaves no weights of another file behind.
  prepare({plain}, {});
  EXPECT_FALSE(std::filesystem::exists(folder_ / "out.weights"));
  EXPECT_FALSE(TokenFile::open(folder_ / "out").marked());
}

TEST_F(PrepareTest, SegmentsThatAreNone) {
  const auto error = [&](const std::string& segments) {
    const Path input = with("a.jsonl", "{\"text\": \"a\"}\n{\"segments\": " + segments + "}\n");
    return error_of([&] { prepare({input}, {}); });
  };
  EXPECT_EQ(error(R"([{"text": "a"}])"), "");
  for (const auto& [segments, what] :
       std::vector<std::pair<const char*, const char*>>{{"3", "no list"},
                                                        {"[3]", "segment 1"},
                                                        {R"([{"text": "a"}, {"weight": 1}])", "segment 2"},
                                                        {R"([{"text": "a", "weight": -1}])", "\"weight\""},
                                                        {R"([{"text": "a", "weight": 1e9}])", "\"weight\""},
                                                        {R"([{"text": "a", "weight": "1"}])", "\"weight\""},
                                                        {R"([{"text": "a", "reset": 1}])", "\"reset\""},
                                                        {R"([{"text": "a", "wait": 1}])", "\"wait\""}}) {
    EXPECT_THAT(error(segments), AllOf(HasSubstr("a.jsonl, line 2"), HasSubstr(what))) << segments;
  }
}

}  // namespace
}  // namespace rwkvx
