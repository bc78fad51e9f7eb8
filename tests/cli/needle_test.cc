#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;
using testing::Not;

class NeedleTest : public test::ProgramTest {
 protected:
  ~NeedleTest() override { std::filesystem::remove_all(folder_ / "out"); }
  Result needle(const std::vector<std::string>& arguments) const {
    std::vector<std::string> all{"needle", proto_};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return run_program(all);
  }
  std::string out(const std::string& name) const { return read_file(Path(file("out")) / name); }
  static size_t lines(const std::string& text) {
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }
};

TEST_F(NeedleTest, AGridIsAnsweredAndWritten) {
  const Result result = needle({"--lengths", "512..1k", "--depths", "0,50,100", "--repeats", "2", "--out",
                                file("out"), "--picture", file("map.svg"), "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["accuracy"], 1.0);
  EXPECT_EQ(json["samples"], 12);
  ASSERT_EQ(json["cells"].size(), 6u);
  for (const auto& cell : json["cells"]) EXPECT_EQ(cell["samples"], 2);
  EXPECT_EQ(json["settings"]["task"], "passkey");
  EXPECT_EQ(json["settings"]["chunk_size"], 64);
  EXPECT_EQ(lines(out("results.csv")), 13u);
  EXPECT_EQ(lines(out("results.jsonl")), 12u);
  EXPECT_THAT(out("results.csv"),
              testing::StartsWith("length,depth,repeat,position,expected,predicted,score\n512,"));
  EXPECT_EQ(out("heatmap.svg"), read_file(file("map.svg")));
  EXPECT_THAT(out("heatmap.svg"), HasSubstr("rwkvx-proto-1.3m.gguf, passkey in noise"));

  const Result again =
      needle({"--lengths", "512..1k", "--depths", "0,50", "--repeats", "2", "--out", file("out")});
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.err, HasSubstr("8 of 8 prompts are answered already"));
  EXPECT_THAT(again.out, HasSubstr("passkey in noise: 100.0% of 8 prompts"));
  EXPECT_EQ(lines(out("results.csv")), 13u);

  expect_error(needle({"--lengths", "512", "--seed", "4", "--out", file("out")}), 1,
               {"seed = 0, not 4", "--out"});
  expect_error(needle({"--lengths", "512", "--precision", "f32", "--out", file("out")}), 1, {"precision"});
}

TEST_F(NeedleTest, AnInterruptedRunGoesOn) {
  {
    // Reads 256K tokens after its first answer.
    test::Program program({"needle", proto_, "--lengths", "1k,256k", "--depths", "0,100", "--repeats", "1",
                           "--out", file("out")});
    const Path results = Path(file("out")) / "results.jsonl";
    while (program.running() && (!std::filesystem::exists(results) || lines(read_file(results)) == 0)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    program.send(SIGINT);
    const Result stopped = program.wait();
    EXPECT_EQ(stopped.code, 130);
    EXPECT_EQ(stopped.out, "");
    EXPECT_THAT(stopped.err, HasSubstr("1 of 4 prompts are answered; the same command goes on from there"));
  }
  const Result result =
      needle({"--lengths", "1k", "--depths", "0,100", "--repeats", "1", "--out", file("out")});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("1 of 2 prompts are answered already"));
  EXPECT_EQ(lines(out("results.jsonl")), 2u);
}

TEST_F(NeedleTest, PromptsOfOneRunServeAnother) {
  const Result first = needle({"--task", "multi-value", "--values", "2", "--lengths", "1k", "--depths", "2",
                               "--repeats", "1", "--write-prompts", file("p.jsonl"), "--json"});
  ASSERT_EQ(first.code, 0) << first.err;
  EXPECT_EQ(lines(read_file(file("p.jsonl"))), 2u);
  const Result second = needle({"--prompts", file("p.jsonl"), "--json"});
  ASSERT_EQ(second.code, 0) << second.err;
  const auto a = nlohmann::json::parse(first.out), b = nlohmann::json::parse(second.out);
  EXPECT_EQ(a["cells"], b["cells"]);
  EXPECT_EQ(a["accuracy"], b["accuracy"]);
  EXPECT_EQ(b["tokens_read"], 2048);
}

TEST_F(NeedleTest, OtherHaystacksAndWords) {
  const std::string hay = with("hay.txt", "A quiet sea lies here. Nothing else is said about it.\n");
  const Result result =
      needle({"--haystack", hay, "--lengths", "512", "--depths", "50%", "--repeats", "1", "--intro",
              "Read this: ", "--needle", " The pass key is {value}. Remember it.", "--question",
              " What is the pass key? The pass key is", "--write-prompts", file("p.jsonl"), "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const std::string prompt = nlohmann::json::parse(read_file(file("p.jsonl")))["prompt"];
  EXPECT_EQ(prompt.size(), 512u);
  EXPECT_THAT(prompt, testing::StartsWith("Read this: A quiet sea lies here."));
  EXPECT_THAT(prompt, testing::EndsWith(" What is the pass key? The pass key is"));
  EXPECT_THAT(prompt, Not(HasSubstr("{value}")));
  EXPECT_EQ(nlohmann::json::parse(result.out)["settings"]["haystack"], "hay.txt");
}

TEST_F(NeedleTest, BadInput) {
  expect_error(needle({"--lengths", "0"}), 2, {"--lengths", "'0'"});
  expect_error(needle({"--lengths", "100"}), 2, {"--lengths", "at least", "100 is too short"});
  expect_error(needle({"--lengths", "8k..1k"}), 2, {"backwards"});
  expect_error(needle({"--depths", "101%"}), 2, {"--depths", "101%"});
  expect_error(needle({"--repeats", "0"}), 2, {"--repeats"});
  expect_error(needle({"--task", "sewing"}), 2, {"--task", "sewing"});
  expect_error(needle({"--needle", "nothing"}), 2, {"--needle", "{value}"});
  expect_error(needle({"--haystack", file("missing.txt")}), 1, {"missing.txt"});
  expect_error(needle({"--haystack", with("empty.txt", "")}), 1, {"empty.txt", "haystack is empty"});
  expect_error(needle({"--picture", file("a.jpg")}), 1, {"a.jpg", ".svg"});
  expect_error(needle({"--picture", file("no/such/a.svg")}), 1, {"no/such"});
  expect_error(needle({"--prompts", with("bad.jsonl", "x\n")}), 1, {"bad.jsonl", "line 1"});
  expect_error(needle({"--prompts", file("bad.jsonl"), "--seed", "1"}), 2, {"--prompts"});
  expect_error(needle({"--out", with("plain", "x")}), 1, {"plain"});
  expect_error(needle({"--vocab", with("few.txt", "1 'a' 1\n")}), 1, {"few.txt"});
}

}  // namespace
}  // namespace rwkvx
