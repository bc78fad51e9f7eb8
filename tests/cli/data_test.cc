// rwkvx data: from text to token files and back, and what it says about wrong ones.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

class DataTest : public test::ProgramTest {
 protected:
  Result data(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), "data");
    return run_program(arguments);
  }
};

TEST_F(DataTest, PreparePackInfoSample) {
  const std::string lines = with("a.jsonl", "{\"text\": \"first document\"}\n{\"text\": \"2nd\"}\n");
  const std::string text = with("b.txt", "third\n===\nfourth one");
  Result result = data({"prepare", lines, text, "--vocab", "byte", "--separator", "\n===\n", "--document-end",
                        "0", "--out", file("tokens")});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, testing::AllOf(HasSubstr("4 documents"), HasSubstr("36 tokens")));

  result = data({"info", file("tokens"), "--json", "--context", "4"});
  EXPECT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json.at("tokens"), 36);
  EXPECT_EQ(json.at("documents"), 4);
  EXPECT_EQ(json.at("type"), "u16");
  EXPECT_EQ(json.at("largest_token"), 'u');
  EXPECT_EQ(json.at("shortest_document"), 4);
  EXPECT_EQ(json.at("longest_document"), 15);
  EXPECT_EQ(json.at("magic_prime"), 5);

  result = data({"sample", file("tokens.bin"), "--vocab", "byte", "--document", "3", "--length", "6"});
  EXPECT_EQ(result.out, "--- document 3 of 4, 11 tokens, the first 6\nfourth\n");
  expect_error(data({"sample", file("tokens"), "--vocab", "byte", "--document", "4"}), 1, {"document 4"});

  result = data({"pack", file("tokens"), "--length", "12", "--out", file("packed")});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, testing::AllOf(HasSubstr("1 sequences of 12"), HasSubstr("2 joined")));
  result = data({"sample", file("packed"), "--vocab", "byte", "--document", "0"});
  EXPECT_EQ(result.out, "--- document 0 of 3, 12 tokens\nfirst docume\n");
  expect_error(data({"pack", file("tokens"), "--out", file("tokens.idx")}), 2, {"output is the input"});
}

TEST_F(DataTest, SegmentsAreShownWithTheirWeights) {
  const std::string lines = with(
      "a.jsonl",
      R"({"segments": [{"text": "What? ", "weight": 0.25}, {"text": "-", "weight": 0}, {"text": "That", "reset": true}]})"
      "\n");
  ASSERT_EQ(data({"prepare", lines, "--vocab", "byte", "--out", file("marked")}).code, 0);
  const Result result = data({"sample", file("marked"), "--vocab", "byte"});
  EXPECT_EQ(result.out, "--- document 0 of 1, 11 tokens\n⟦0⟧W⟦0.25⟧hat? ⟦0⟧-⟲⟦1⟧That\n") << result.err;
}

TEST_F(DataTest, SamplesOfAMixture) {
  const std::string mixture =
      with("mix.json", R"({"sources": [{"kind": "needles", "share": 1, "tasks": ["passkey"],
      "distractors": 0}], "resets": {"questions": 1}, "weights": {"text": 0.5},
      "phases": [{"steps": 1, "context": 150}, {"context": 200}]})");
  const auto show = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"sample", "--mixture", mixture, "--vocab", "byte"});
    return data(more);
  };
  Result result = show({"--count", "2", "--phase", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, testing::AllOf(HasSubstr("--- sample 0: 200 tokens, 1 answers, 1 resets\n"),
                                         HasSubstr("--- sample 1:"),
                                         HasSubstr("⟲ What is the pass key? The pass"), HasSubstr("is⟦1⟧ ")));
  EXPECT_THAT(show({"--context", "170"}).out, HasSubstr("170 tokens"));
  EXPECT_EQ(show({"--seed", "4"}).out, show({"--seed", "4"}).out);
  expect_error(show({"--phase", "3"}), 1, {"no phase 3"});
  expect_error(show({"--context", "20"}), 1, {"at least"});
  expect_error(data({"sample", "--vocab", "byte"}), 2, {"--mixture"});
}

TEST_F(DataTest, WrongUsageAndFiles) {
  expect_error(run_program({"data"}), 2, {});
  const std::string text = with("a.txt", "x");
  expect_error(data({"prepare", text, "--vocab", "byte"}), 2, {"--out"});
  expect_error(data({"prepare", text, "--out", file("o")}), 2, {"--vocab"});
  for (const char* end : {"-1", "x", "99999999999", ""})
    expect_error(data({"prepare", text, "--vocab", "byte", "--out", file("o"), "--document-end", end}), 2,
                 {"--document-end"});
  expect_error(data({"prepare", file("none"), "--vocab", "byte", "--out", file("o")}), 1, {file("none")});
  expect_error(data({"prepare", text, "--vocab", "byte", "--out", file("no/o")}), 1, {file("no/o")});
  expect_error(data({"prepare", text, "--format", "jsonl", "--vocab", "byte", "--out", file("o")}), 1,
               {text, "line 1", "JSON"});
  for (const char* command : {"info", "pack", "sample"}) {
    std::vector<std::string> arguments{command, text};
    if (std::string(command) == "pack") arguments.insert(arguments.end(), {"--out", file("o")});
    if (std::string(command) == "sample") arguments.insert(arguments.end(), {"--vocab", "byte"});
    expect_error(data(arguments), 1, {".idx"});
  }
  test::Setting full;
  full.largest_file = 1000;
  const std::string large = with("large.txt", std::string(5000, 'x'));
  expect_error(run_program({"data", "prepare", large, "--vocab", "byte", "--out", file("o")}, full), 1,
               {file("o.bin")});
  EXPECT_EQ(folder_.files(), (std::vector<std::string>{"a.txt", "large.txt"}));
}

}  // namespace
}  // namespace rwkvx
