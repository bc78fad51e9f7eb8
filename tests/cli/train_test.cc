// rwkvx train at the command line: killed and resumed, stopped by signals, its files, wrong usage.
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"
#include "training/run_folder.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Program;
using test::Result;
using test::run_program;
using testing::HasSubstr;

class TrainTest : public test::ProgramTest {
 protected:
  TrainTest() {
    std::string text;
    for (int i = 0; i < 2000; ++i) text += static_cast<char>('a' + i * 7 % 26);
    std::ofstream(file("text.txt")) << text;
    const Result result =
        run_program({"data", "prepare", file("text.txt"), "--vocab", "byte", "--out", file("data")});
    EXPECT_EQ(result.code, 0) << result.err;
  }
  std::vector<std::string> arguments(const std::string& folder, std::vector<std::string> more = {}) const {
    std::vector<std::string> all{"train", "--out",        file(folder), "--data",    file("data"), "--layers",
                                 "1",     "--channels",   "64",         "--ffn",     "64",         "--batch",
                                 "1",     "--context",    "16",         "--threads", "1",          "--steps",
                                 "40",    "--save-every", "7",          "--lr",      "1e-3"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  std::string model(const std::string& folder, const char* step) const {
    return file(folder + "/checkpoints/step-" + step + "/model.safetensors");
  }
  /// Waits until the run has made a checkpoint.
  bool has_saved(const std::string& folder, Program& program) const {
    while (program.running()) {
      if (!RunFolder(file(folder)).checkpoints().empty()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
};

TEST_F(TrainTest, LeavesItsFiles) {
  const Result whole = run_program(arguments("whole"));
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_EQ(whole.out, "");
  EXPECT_THAT(whole.err, testing::AllOf(HasSubstr("step 40/40"), HasSubstr("step-00000040")));
  for (const char* name : {"config.json", "metrics.jsonl", "loss.svg"})
    EXPECT_TRUE(std::filesystem::exists(file(std::string("whole/") + name))) << name;
}

TEST_F(TrainTest, KilledAndResumedIsBitForBitTheSame) {
  // Many more steps, so that the run cannot end before it is killed.
  Program killed(arguments("killed", {"--steps", "1000000", "--schedule", "constant"}));
  ASSERT_TRUE(has_saved("killed", killed));
  killed.send(SIGKILL);
  EXPECT_EQ(killed.wait().signal, SIGKILL);
  const int64_t end = RunFolder(file("killed")).checkpoints().back() + 10;
  const std::string steps = std::to_string(end);
  const Result resumed = run_program({"train", "--out", file("killed"), "--resume", "--steps", steps});
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  const Result steady = run_program(arguments("steady", {"--steps", steps, "--schedule", "constant"}));
  ASSERT_EQ(steady.code, 0) << steady.err;
  for (const char* name : {"model.safetensors", "optimizer.safetensors", "progress.json"}) {
    EXPECT_EQ(read_file(RunFolder(file("killed")).checkpoint(end) / name),
              read_file(RunFolder(file("steady")).checkpoint(end) / name))
        << name;
  }
}

TEST_F(TrainTest, SignalsSaveAndEnd) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const std::string folder = "run" + std::to_string(signal);
    Program program(arguments(folder, {"--steps", "1000000"}));
    ASSERT_TRUE(has_saved(folder, program));
    program.send(signal);
    const Result result = program.wait();
    EXPECT_EQ(result.code, 130);
    EXPECT_THAT(result.err, testing::AllOf(HasSubstr("stopped behind step"), HasSubstr("--resume")));
    EXPECT_EQ(run_program({"train", "--out", file(folder), "--resume", "--steps", "1"}).code, 0);
  }
}

TEST_F(TrainTest, ConfigurationFiles) {
  ASSERT_EQ(run_program(arguments("first", {"--steps", "3", "--seed", "5"})).code, 0);
  // The saved configuration makes the same run again; flags win over it.
  ASSERT_EQ(run_program({"train", "--out", file("second"), "--config", file("first/config.json")}).code, 0);
  EXPECT_EQ(read_file(model("first", "00000003")), read_file(model("second", "00000003")));
  ASSERT_EQ(
      run_program({"train", "--out", file("third"), "--config", file("first/config.json"), "--steps", "2"})
          .code,
      0);
  const auto json = nlohmann::json::parse(read_file(file("third/config.json")));
  EXPECT_EQ(json.at("steps"), 2);
  EXPECT_EQ(json.at("seed"), 5);
  expect_error(run_program({"train", "--out", file("x"), "--config", with("bad.json", "{\"stepz\": 3}"),
                            "--data", "d"}),
               1, {file("bad.json"), "stepz"});
}

TEST_F(TrainTest, ACheckpointConvertsToPth) {
  ASSERT_EQ(run_program(arguments("run", {"--steps", "2", "--layers", "2", "--sparse-blocks", "1",
                                          "--chunk-size", "8", "--chunk-top-k", "2"}))
                .code,
            0);
  const Result result =
      run_program({"convert", model("run", "00000002"), file("model.pth"), "--dtype", "bf16"});
  EXPECT_EQ(result.code, 0) << result.err;
  const auto pth = open_checkpoint(file("model.pth"), {8, 2});
  EXPECT_EQ(pth->config, open_checkpoint(model("run", "00000002"))->config);
  EXPECT_NO_THROW(check_tensors(*pth));
  const Result info = run_program({"info", model("run", "00000002"), "--json"});
  EXPECT_EQ(nlohmann::json::parse(info.out).at("chunk_size"), 8);
}

TEST_F(TrainTest, WrongUsage) {
  expect_error(run_program({"train"}), 2, {"--out"});
  expect_error(run_program({"train", "--out", file("x")}), 2, {"--data", "--chat"});
  for (const auto& [flag, value] : std::vector<std::pair<std::string, std::string>>{{"--stage", "third"},
                                                                                    {"--batch", "0"},
                                                                                    {"--lr", "-1"},
                                                                                    {"--channels", "100"},
                                                                                    {"--longce", "much"},
                                                                                    {"--steps", "x"}}) {
    expect_error(run_program(arguments("x", {flag, value})), 2, {flag});
  }
  expect_error(run_program({"train", "--out", file("x"), "--data", file("none")}), 1, {file("none.idx")});
  expect_error(run_program({"train", "--out", file("x"), "--resume"}), 1, {file("x"), "config.json"});
  EXPECT_FALSE(std::filesystem::exists(file("x")));
}

TEST_F(TrainTest, AFullDiskLeavesTheCheckpointBefore) {
  ASSERT_EQ(run_program(arguments("run", {"--steps", "7"})).code, 0);
  const std::string before = read_file(model("run", "00000007"));
  test::Setting full;
  full.largest_file = 100000;  // the model has more
  const Result result = run_program({"train", "--out", file("run"), "--resume", "--steps", "9"}, full);
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, testing::ContainsRegex("cannot write .*step-00000009.*"));
  EXPECT_EQ(read_file(model("run", "00000007")), before);
  EXPECT_EQ(run_program({"train", "--out", file("run"), "--resume", "--steps", "9"}).code, 0);
}

}  // namespace
}  // namespace rwkvx
