// Help, exit codes, and what goes to stdout and to stderr.
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

const std::vector<std::string> kCommands{"info",    "generate", "chat", "logits", "tokenize", "detokenize",
                                         "convert", "needle",   "loss", "bench",  "recall"};

class UsageTest : public test::ProgramTest {};

TEST_F(UsageTest, HelpOfEverything) {
  const Result all = run_program({"--help"});
  EXPECT_EQ(all.code, 0);
  EXPECT_EQ(all.err, "");
  for (const std::string& command : kCommands) {
    SCOPED_TRACE(command);
    EXPECT_THAT(all.out, HasSubstr("\n  " + command));
    const Result help = run_program({command, "--help"});
    EXPECT_EQ(help.code, 0);
    EXPECT_EQ(help.err, "");
    EXPECT_THAT(help.out, HasSubstr(command));
    EXPECT_THAT(help.out, HasSubstr("--help"));
  }
}

TEST_F(UsageTest, CommandsThatRunAModelShareTheirFlags) {
  for (const char* command : {"generate", "chat", "logits", "needle", "bench", "recall"}) {
    const Result help = run_program({command, "--help"});
    for (const char* flag : {"--chunk-size", "--chunk-top-k", "--precision", "--device", "--threads", "--kv",
                             "--kv-dtype", "--select"}) {
      EXPECT_THAT(help.out, HasSubstr(flag)) << command;
    }
  }
}

TEST_F(UsageTest, Version) {
  const Result result = run_program({"--version"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.out, testing::MatchesRegex("rwkvx [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST_F(UsageTest, WrongUsageExitsWith2) {
  expect_error(run_program({}), 2, {});
  expect_error(run_program({"dance"}), 2, {"dance"});
  for (const std::string& command : kCommands) {
    SCOPED_TRACE(command);
    std::vector<std::string> arguments{command, proto_, "--no-such-flag"};
    if (command == "logits") arguments.insert(arguments.end(), {"--text", "x", "--out", file("out")});
    if (command == "convert") arguments.push_back(file("out.gguf"));
    expect_error(run_program(arguments), 2, {"--no-such-flag"});
  }
  expect_error(run_program({"convert", proto_}), 2, {"OUT"});
}

TEST_F(UsageTest, ValuesThatAFlagCannotTake) {
  const std::vector<std::pair<std::string, std::string>> bad{
      {"--precision", "f64"}, {"--precision", ""},    {"--device", "abacus"},      {"--threads", "-1"},
      {"--threads", "many"},  {"--chunk-size", "0"},  {"--chunk-size", "-5"},      {"--chunk-size", "2.5"},
      {"--chunk-top-k", "0"}, {"--chunk-top-k", "x"}, {"--chunk-size", "99999999"}};
  for (const auto& [flag, value] : bad) {
    SCOPED_TRACE(flag + " " + value);
    for (const char* command : {"generate", "chat", "needle"}) {
      expect_error(run_program({command, proto_, flag, value}), 2, {flag});
    }
    expect_error(run_program({"logits", proto_, "--text", "x", "--out", file("out"), flag, value}), 2,
                 {flag});
  }
  for (const auto& [flag, value] :
       std::vector<std::pair<std::string, std::string>>{{"--temperature", "-1"},
                                                        {"--temperature", "hot"},
                                                        {"--temperature", "nan"},
                                                        {"--top-p", "0"},
                                                        {"--top-p", "1.5"},
                                                        {"--top-k", "-1"},
                                                        {"--min-p", "2"},
                                                        {"--penalty-decay", "1.5"},
                                                        {"--repetition-penalty", "0"},
                                                        {"--seed", "-1"},
                                                        {"--seed", "x"},
                                                        {"--max-tokens", "-1"},
                                                        {"--stop", ""}}) {
    SCOPED_TRACE(flag + " " + value);
    expect_error(run_program({"generate", proto_, "--prompt", "x", flag, value}), 2, {flag});
  }
  EXPECT_TRUE(folder_.files().empty());
}

TEST_F(UsageTest, FilesThatAreNoModels) {
  std::string noise(5000, '\0');
  for (size_t i = 0; i < noise.size(); ++i) noise[i] = static_cast<char>(i * 2654435761u >> 13);
  const std::string pth = read_file(test::data("goldens/rwkvx/model.pth")),
                    safetensors = read_file(test::data("goldens/rwkvx/model.safetensors")),
                    gguf = read_file(proto_);
  const std::vector<std::string> files{
      file("none"),
      Path(file("none")).parent_path().string(),
      with("empty", ""),
      with("noise", noise),
      with("text.gguf", "GGUF"),
      with("half.pth", pth.substr(0, pth.size() / 2)),
      with("half.safetensors", safetensors.substr(0, safetensors.size() / 2)),
      with("half.gguf", gguf.substr(0, gguf.size() / 2))};
  for (const std::string& model : files) {
    SCOPED_TRACE(model);
    expect_error(run_program({"info", model}), 1, {model});
    expect_error(run_program({"generate", model, "--prompt", "x"}), 1, {model});
    expect_error(run_program({"chat", model}), 1, {model});
    expect_error(run_program({"logits", model, "--text", "x", "--out", file("out.safetensors")}), 1, {model});
    expect_error(run_program({"convert", model, file("out.gguf")}), 1, {model});
    expect_error(run_program({"tokenize", "--model", model, "x"}), 1, {model});
    expect_error(run_program({"detokenize", "--model", model, "[1]"}), 1, {model});
  }
  EXPECT_THAT(folder_.files(), testing::Not(testing::Contains(testing::StartsWith("out"))));
}

TEST_F(UsageTest, StdoutThatCannotBeWrittenTo) {
  test::Setting full;
  full.output = "/dev/full";
  if (!std::filesystem::exists(*full.output)) GTEST_SKIP() << "no /dev/full here";
  expect_error(run_program({"info", proto_}, full), 1, {"stdout"});
  expect_error(run_program({"tokenize", "--vocab", "byte", "abc"}, full), 1, {"stdout"});
  expect_error(run_program({"generate", proto_, "--prompt", "abc", "--max-tokens", "3"}, full), 1,
               {"stdout"});
}

TEST_F(UsageTest, InfoMatchesTheLibrary) {
  const auto checkpoint = open_checkpoint(test::data("goldens/rwkvx/model.safetensors"), {16, 3});
  const Result result = run_program({"info", checkpoint->path().string(), "--json", "--chunk-size", "16"});
  EXPECT_EQ(result.code, 0);
  const auto json = nlohmann::json::parse(result.out);
  const ModelConfig& c = checkpoint->config;
  EXPECT_EQ(json.at("architecture"), "RWKV-X");
  EXPECT_EQ(json.at("layers"), c.layers);
  EXPECT_EQ(json.at("sparse_blocks"), c.sparse_blocks);
  EXPECT_EQ(json.at("block_order"), "RRS");
  EXPECT_EQ(json.at("channels"), c.channels);
  EXPECT_EQ(json.at("heads"), c.heads());
  EXPECT_EQ(json.at("vocab"), c.vocab);
  EXPECT_EQ(json.at("chunk_size"), 16);
  EXPECT_EQ(json.at("chunk_top_k"), 3);
  EXPECT_EQ(json.at("chunk_settings_recorded"), false);
  EXPECT_EQ(json.at("tokenizer"), "none");
  int64_t parameters = 0;
  for (const auto& tensor : checkpoint->catalog.tensors()) parameters += tensor.data.elements();
  EXPECT_EQ(json.at("parameters"), parameters);
  EXPECT_EQ(json.at("dtypes").at("bf16"), parameters);
  int64_t parts = 0;
  for (const auto& part : json.at("parts")) parts += part.at("parameters").get<int64_t>();
  EXPECT_EQ(parts, parameters);

  const Result text = run_program({"info", proto_});
  EXPECT_EQ(text.code, 0);
  EXPECT_EQ(text.err, "");
  for (const char* part : {"RWKV-X", "chunks of 64, top-k 4", "byte", "parameters"}) {
    EXPECT_THAT(text.out, HasSubstr(part));
  }
}

TEST_F(UsageTest, NotFiniteWeightsWarnAndGoOn) {
  test::TensorFile model = test::small_model(1, 0);
  const float bad = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(model.at("head.weight").bytes.data() + 4 * 64 * 7, &bad, sizeof bad);
  model.write(folder_ / "model");
  const Result result =
      run_program({"logits", file("model"), "--text", "x", "--out", file("out"), "--threads", "1"});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, testing::AllOf(HasSubstr("warning"), HasSubstr("head.weight"), HasSubstr("NaN")));
  // Sampling from NaN has no meaning and says so.
  const Result sampled = run_program({"generate", file("model"), "--prompt", "x", "--threads", "1"});
  EXPECT_EQ(sampled.code, 1);
  EXPECT_EQ(sampled.out, "");
  EXPECT_THAT(sampled.err, HasSubstr("NaN"));
}

}  // namespace
}  // namespace rwkvx
