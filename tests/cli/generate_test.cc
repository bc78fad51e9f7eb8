// generate: the text, the whole text and nothing but the text on stdout.
#include <fmt/format.h>

#include <chrono>
#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"
#include "runtime/text_stream.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Program;
using test::Result;
using test::run_program;
using testing::HasSubstr;

/// Differing bytes, with characters of two, three and four.
const std::string kCycle = "abc\xc3\xa9 \xe2\x82\xacXY\xf0\x9d\x84\x9eZ\n";  // "abcé €XY𝄞Z\n"

/// `count` bytes of the cycle, from the byte after `after` on.
std::string cycle(char after, size_t count) {
  std::string text;
  for (size_t at = kCycle.find(after) + 1; text.size() < count; ++at) text += kCycle[at % kCycle.size()];
  return text;
}

class GenerateTest : public test::ProgramTest {
 protected:
  GenerateTest() { test::successor_model(kCycle).write(folder_ / "model"); }

  Result generate(std::vector<std::string> arguments, const test::Setting& setting = {}) const {
    arguments.insert(arguments.begin(), {"generate", file("model"), "--temperature", "0", "--threads", "1"});
    return run_program(arguments, setting);
  }
  Result sample(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"generate", proto_, "--temperature", "1", "--top-p", "1"});
    return run_program(arguments);
  }
  static nlohmann::json json_of(const Result& result) {
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  }
};

TEST_F(GenerateTest, StdoutIsExactlyTheText) {
  const Result result = generate({"--prompt", "a", "--max-tokens", "40"});
  EXPECT_EQ(result.code, 0);
  EXPECT_EQ(result.out, cycle('a', 40));
  EXPECT_THAT(result.err, testing::AllOf(HasSubstr("prompt 1 tokens"), HasSubstr("generated 40 tokens"),
                                         HasSubstr("tokens/s"), HasSubstr("max_tokens")));
}

TEST_F(GenerateTest, PromptsFromFilesAndStdin) {
  EXPECT_EQ(generate({"--prompt-file", with("prompt", "xyzX"), "--max-tokens", "9"}).out, cycle('X', 9));
  EXPECT_EQ(generate({"--prompt-file", "-", "--max-tokens", "9"}, {.input = "b"}).out, cycle('b', 9));
}

TEST_F(GenerateTest, PromptsOfAnyBytes) {
  for (const std::string& prompt :
       {std::string("\xff\xfe\x80Z"), std::string("\0\0Z", 3), std::string("\xe2\x82Z")}) {
    const Result result = generate({"--prompt-file", with("prompt", prompt), "--max-tokens", "5"});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_EQ(result.out, cycle('Z', 5));
  }
  EXPECT_EQ(generate({"--prompt", "\xff\xc3Z", "--max-tokens", "5"}).out, cycle('Z', 5));
}

TEST_F(GenerateTest, WrongUsage) {
  expect_error(generate({"--prompt", "a", "--prompt-file", with("prompt", "b")}), 2, {"--prompt-file"});
  expect_error(generate({"--prompt", ""}), 1, {"--prompt"});
  expect_error(generate({"--prompt-file", file("none")}), 1, {file("none")});
  expect_error(generate({"--prompt", "a", "--state-in", file("none")}), 1, {file("none")});
  expect_error(
      run_program({"generate", test::data("goldens/rwkv7/model.safetensors").string(), "--prompt", "x"}), 1,
      {"model.safetensors", "--vocab"});
}

TEST_F(GenerateTest, Json) {
  const nlohmann::json json =
      json_of(generate({"--prompt", "a", "--max-tokens", "8", "--json", "--seed", "5"}));
  EXPECT_EQ(json.at("text"), cycle('a', 8));
  EXPECT_EQ(json.at("generated_tokens"), 8);
  const std::string bytes = cycle('a', 8);
  std::vector<int> tokens;
  for (const char c : bytes) tokens.push_back(static_cast<unsigned char>(c));
  EXPECT_EQ(json.at("tokens").get<std::vector<int>>(), tokens);
  EXPECT_EQ(json.at("prompt_tokens"), 1);
  EXPECT_EQ(json.at("stop_reason"), "max_tokens");
  EXPECT_EQ(json.at("seed"), 5);
  EXPECT_GT(json.at("peak_memory_bytes"), 0);
  const nlohmann::json read = json_of(generate({"--prompt", "abc", "--max-tokens", "0", "--json"}));
  EXPECT_EQ(read.at("context_tokens"), 3);
  EXPECT_GT(read.at("prompt_seconds"), 0);
  // A text that ends inside a character is still JSON; its tokens are exact.
  const nlohmann::json cut = json_of(generate({"--prompt", "a", "--max-tokens", "7", "--json"}));
  EXPECT_EQ(cut.at("text"), cycle('a', 5) + "\xef\xbf\xbd");
  tokens.pop_back();
  EXPECT_EQ(cut.at("tokens").get<std::vector<int>>(), tokens);
}

TEST_F(GenerateTest, MaxTokens) {
  for (const int n : {0, 1, 3, 17}) {
    const Result result = generate({"--prompt", "a", "--max-tokens", std::to_string(n)});
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.out, cycle('a', static_cast<size_t>(n)));
  }
}

TEST_F(GenerateTest, StopStrings) {
  const auto stopped = [&](std::vector<std::string> stops, const std::string& expected) {
    std::vector<std::string> arguments{"--prompt", "a", "--max-tokens", "100"};
    for (const std::string& stop : stops) arguments.insert(arguments.end(), {"--stop", stop});
    const Result result = generate(arguments);
    EXPECT_EQ(result.code, 0);
    EXPECT_EQ(result.out, expected);
    EXPECT_THAT(result.err, HasSubstr("stop_string"));
  };
  stopped({"XY"}, "bc\xc3\xa9 \xe2\x82\xac");
  stopped({"\xf0\x9d\x84\x9e"}, "bc\xc3\xa9 \xe2\x82\xacXY");
  stopped({"nowhere", "Z", "c\xc3\xa9"}, "b");
  stopped({"b"}, "");
  stopped({"Z\nabcd", "\na"}, "bc\xc3\xa9 \xe2\x82\xacXY\xf0\x9d\x84\x9eZ");
  const Result result = generate({"--prompt", "a", "--max-tokens", "30", "--stop", "XZ"});
  EXPECT_EQ(result.out, cycle('a', 30)) << "its first half comes out when it is none";
}

TEST_F(GenerateTest, StreamsWithoutSplittingCharacters) {
  // Whenever stdout is looked at while the program runs, it ends with a whole character.
  Program program({"generate", file("model"), "--temperature", "0", "--threads", "1", "--prompt", "a",
                   "--max-tokens", "1000000000"});
  for (size_t looks = 0, last = 0; looks < 100;) {
    ASSERT_TRUE(program.running());
    const std::string text = program.output();
    if (text.size() == last) continue;
    last = text.size();
    ++looks;
    ASSERT_EQ(incomplete_utf8_tail(text), 0u) << "after " << text.size() << " bytes";
  }
  program.send(SIGINT);
  const Result result = program.wait();
  EXPECT_EQ(result.out, cycle('a', result.out.size()));
}

TEST_F(GenerateTest, SameSeedSameText) {
  const auto text = [&](const std::string& seed) {
    return json_of(sample({"--prompt", "qz", "--max-tokens", "40", "--seed", seed, "--json"})).at("tokens");
  };
  const auto first = text("7");
  EXPECT_EQ(text("7"), first);
  EXPECT_NE(text("8"), first) << "of 40 bytes at temperature 1";
  // Without a seed one is drawn, told, and gives the same again.
  const auto drawn = json_of(sample({"--prompt", "qz", "--max-tokens", "40", "--json"}));
  EXPECT_EQ(text(std::to_string(drawn.at("seed").get<uint64_t>())), drawn.at("tokens"));
  const Result shown = sample({"--prompt", "qz", "--max-tokens", "40", "--seed", "7"});
  EXPECT_THAT(shown.err, HasSubstr("seed 7"));
}

TEST_F(GenerateTest, ContinuedStatesAreOneRun) {
  for (const bool greedy : {true, false}) {
    SCOPED_TRACE(greedy);
    const auto tokens = [&](std::vector<std::string> arguments, const std::string& count) {
      arguments.insert(arguments.end(), {"--max-tokens", count, "--json"});
      if (greedy) arguments.insert(arguments.end(), {"--temperature", "0"});
      arguments.insert(arguments.begin(), {"generate", proto_, "--frequency-penalty", "0.3"});
      return json_of(run_program(arguments)).at("tokens").get<std::vector<int>>();
    };
    const std::string prompt =
        "It was the best of times, it was the worst of times, it was the age of wisdom, it was";
    const auto whole = tokens({"--prompt", prompt, "--seed", "3"}, "45");
    auto pieces = tokens({"--prompt", prompt, "--seed", "3", "--state-out", file("state")}, "20");
    for (const char* count : {"1", "24"}) {
      const auto more = tokens({"--state-in", file("state"), "--state-out", file("state")}, count);
      pieces.insert(pieces.end(), more.begin(), more.end());
    }
    EXPECT_EQ(pieces, whole);
    // The prompt in two pieces, none of it generated from: exactly the same where prefill adds in one order
    // whatever the pieces, which only the reference backend does.
    const std::string ours = prompt.substr(prompt.size() - 24), backend = "--backend=reference";
    const auto reference = tokens({"--prompt", ours, "--seed", "3", backend}, "8");
    EXPECT_EQ(reference.size(), 8u);
    EXPECT_EQ(
        tokens({"--prompt", ours.substr(0, 9), "--seed", "3", backend, "--state-out", file("state")}, "0")
            .size(),
        0u);
    EXPECT_EQ(tokens({"--state-in", file("state"), "--prompt", ours.substr(9), backend}, "8"), reference);
  }
}

TEST_F(GenerateTest, StatesOfAnotherModelAreRefused) {
  ASSERT_EQ(generate({"--prompt", "abc", "--max-tokens", "2", "--state-out", file("state")}).code, 0);
  expect_error(run_program({"generate", proto_, "--state-in", file("state")}), 1,
               {file("state"), "another model"});
  test::TensorFile other = test::successor_model(kCycle);
  other.at("blocks.0.att.w0").bytes[0] ^= std::byte{1};
  other.write(folder_ / "other");
  expect_error(run_program({"generate", file("other"), "--state-in", file("state")}), 1,
               {file("state"), "another model"});
  std::string damaged = read_file(file("state"));
  damaged[damaged.size() / 2] ^= 1;
  expect_error(generate({"--state-in", with("damaged", damaged)}), 1, {file("damaged"), "checksum"});
  expect_error(generate({"--state-in", with("short", damaged.substr(0, 100))}), 1, {file("short")});
  expect_error(generate({"--state-in", file("model")}), 1, {file("model"), "not a state file"});
}

TEST_F(GenerateTest, StatesThatCannotBeWritten) {
  const Result result =
      generate({"--prompt", "a", "--max-tokens", "3", "--state-out", file("no/folder/state")});
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr(file("no/folder/state")));
  with("old", "keep me");
  test::Setting small_disk;
  small_disk.largest_file = 3000;
  EXPECT_EQ(generate({"--prompt", "a", "--max-tokens", "3", "--state-out", file("old")}, small_disk).code, 1);
  EXPECT_EQ(read_file(file("old")), "keep me");
  EXPECT_THAT(folder_.files(), testing::ElementsAre("model", "old"));
}

TEST_F(GenerateTest, ControlCEndsCleanly) {
  const std::vector<std::string> arguments{"generate",     file("model"), "--temperature", "0",
                                           "--threads",    "1",           "--prompt",      "a",
                                           "--max-tokens", "1000000000",  "--state-out",   file("state")};
  Program program(arguments);
  while (program.running() && program.output().size() < 50) std::this_thread::yield();
  program.send(SIGINT);
  const Result result = program.wait();
  EXPECT_EQ(result.code, 130);
  EXPECT_EQ(result.signal, 0);
  EXPECT_GE(result.out.size(), 50u);
  EXPECT_EQ(result.out, cycle('a', result.out.size()));
  EXPECT_THAT(result.err, testing::AllOf(HasSubstr("tokens/s"), HasSubstr("interrupted")));
  // The state is there, and goes on where the text ended.
  const Result more = generate({"--state-in", file("state"), "--max-tokens", "30"});
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_EQ(result.out + more.out, cycle('a', result.out.size() + 30));
}

TEST_F(GenerateTest, PipesThatClose) {
  // A reader that went away ends the program without a word of its own.
  const std::string command =
      fmt::format("'{}' generate '{}' --temperature 0 --prompt a --max-tokens 1000000000 | head -c 5",
                  RWKVX_PROGRAM, file("model"));
  EXPECT_EQ(std::system((command + " > " + file("five")).c_str()), 0);
  EXPECT_EQ(read_file(file("five")), cycle('a', 5));
}

TEST_F(GenerateTest, PasskeyOfTheCommittedModel) {
  const std::string prompts = read_file(test::data("rwkvx-proto-1.3m/passkeys.jsonl"));
  const nlohmann::json first = nlohmann::json::parse(prompts.substr(0, prompts.find('\n')));
  const Result result = run_program({"generate", proto_, "--prompt-file", with("prompt", first.at("prompt")),
                                     "--temperature", "0", "--max-tokens", "5"});
  EXPECT_EQ(result.out, first.at("answer"));
}

}  // namespace
}  // namespace rwkvx
