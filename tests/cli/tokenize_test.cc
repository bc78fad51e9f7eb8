// tokenize and detokenize: any bytes there and back.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;

class TokenizeTest : public test::ProgramTest {
 protected:
  /// Single bytes and a few words, without a token 0.
  std::string vocabulary() const {
    std::string lines;
    for (int i = 1; i <= 256; ++i) lines += fmt::format("{} b'\\x{:02x}' 1\n", i, i - 1);
    lines += "257 'hello' 5\n258 ' world' 6\n259 'ä' 2\n";
    return with("vocabulary", lines);
  }
  static std::string every_byte() {
    std::string all = "hello world ä\n";
    for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
    return all + "\n\n";
  }
};

TEST_F(TokenizeTest, WordsFromAnArgument) {
  const Result result = run_program({"tokenize", "--vocab", vocabulary(), "hello world"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(result.out, "[257, 258]\n");
  const Result back = run_program({"detokenize", "--vocab", vocabulary(), "[257, 258]"});
  EXPECT_EQ(back.code, 0);
  EXPECT_EQ(back.out, "hello world") << "exactly the text";
}

TEST_F(TokenizeTest, AnyBytesThroughStdinAndFiles) {
  for (const std::vector<std::string>& whose :
       {std::vector<std::string>{"--vocab", "byte"}, {"--vocab", vocabulary()}, {"--model", proto_}}) {
    SCOPED_TRACE(whose[1]);
    for (const std::string& text :
         {every_byte(), std::string(), std::string("\xff\xfe\xc3"), std::string(3, '\0')}) {
      const auto with_flags = [&](const std::string& command, std::vector<std::string> rest) {
        rest.insert(rest.begin(), {command, whose[0], whose[1]});
        return rest;
      };
      const Result from_stdin = run_program(with_flags("tokenize", {}), {.input = text});
      const Result from_dash = run_program(with_flags("tokenize", {"--file", "-"}), {.input = text});
      const Result from_file = run_program(with_flags("tokenize", {"--file", with("text", text)}));
      EXPECT_EQ(from_stdin.code, 0);
      EXPECT_TRUE(nlohmann::json::parse(from_stdin.out).is_array());
      EXPECT_EQ(from_dash.out, from_stdin.out);
      EXPECT_EQ(from_file.out, from_stdin.out);
      const Result back = run_program(with_flags("detokenize", {}), {.input = from_stdin.out});
      EXPECT_EQ(back.code, 0);
      EXPECT_EQ(back.out, text);
      const Result back_from_file =
          run_program(with_flags("detokenize", {"--file", with("ids", from_stdin.out)}));
      EXPECT_EQ(back_from_file.out, text);
    }
  }
}

TEST_F(TokenizeTest, InvalidUtf8AsAnArgument) {
  const Result result = run_program({"tokenize", "--vocab", "byte", "\xc3(\xff"});
  EXPECT_EQ(result.out, "[195, 40, 255]\n");
}

TEST_F(TokenizeTest, WrongUsage) {
  expect_error(run_program({"tokenize", "x"}), 2, {"--model", "--vocab"});
  expect_error(run_program({"detokenize", "[1]"}), 2, {"--model", "--vocab"});
  expect_error(run_program({"tokenize", "--vocab", "byte", "x", "--file", with("text", "y")}), 2, {"--file"});
  expect_error(run_program({"tokenize", "--vocab", "byte", "--file", file("none")}), 1, {file("none")});
  expect_error(run_program({"tokenize", "--vocab", file("none"), "x"}), 1, {file("none")});
}

TEST_F(TokenizeTest, IdsThatCannotBe) {
  for (const char* ids :
       {"", "1 2", "{}", "[1.5]", "[\"a\"]", "[[1]]", "[1", "null", "[99999999999]", "[1e99]", "[true]"}) {
    SCOPED_TRACE(ids);
    expect_error(run_program({"detokenize", "--vocab", "byte"}, {.input = ids}), 1, {"JSON list"});
  }
  expect_error(run_program({"detokenize", "--vocab", "byte", "[1, 256]"}), 1, {"256"});
  expect_error(run_program({"detokenize", "--vocab", "byte", "[-1]"}), 1, {"-1"});
  expect_error(run_program({"detokenize", "--vocab", vocabulary(), "[260]"}), 1, {"260"});
  EXPECT_EQ(run_program({"detokenize", "--vocab", "byte", "[]"}).out, "");
}

TEST_F(TokenizeTest, DamagedVocabulariesNameTheLine) {
  expect_error(run_program({"tokenize", "--vocab", with("bad", "1 'a' 1\n2 'b\n"), "x"}), 1,
               {file("bad"), "2"});
  expect_error(run_program({"tokenize", "--vocab", with("length", "1 'abc' 2\n"), "x"}), 1,
               {file("length"), "1"});
  expect_error(run_program({"tokenize", "--vocab", with("nothing", ""), "x"}), 1, {file("nothing")});
}

TEST_F(TokenizeTest, VocabulariesThatDoNotFitTheModel) {
  // 260 tokens for a model of 256.
  expect_error(run_program({"tokenize", "--model", proto_, "--vocab", vocabulary(), "x"}), 1,
               {vocabulary(), "260", "256"});
  expect_error(run_program({"generate", proto_, "--vocab", vocabulary(), "--prompt", "x"}), 1,
               {vocabulary(), "256"});
}

}  // namespace
}  // namespace rwkvx
