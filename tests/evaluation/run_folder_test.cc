#include "evaluation/run_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "error_of.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

class RunFolderTest : public ::testing::Test {
 protected:
  const test::TemporaryFolder base_;
  const Path folder_ = base_ / "deep/run";
  const Json settings_ = {{"model", "a"}, {"seed", 5}, {"depth", 0.1}};

  ~RunFolderTest() override { std::filesystem::remove_all(base_ / "deep"); }
  std::string results() const { return read_file(folder_ / "results.jsonl"); }
  void write_results(const std::string& text) const {
    std::ofstream(folder_ / "results.jsonl", std::ios::binary) << text;
  }
};

TEST_F(RunFolderTest, GoesOnWhereItStopped) {
  {
    RunFolder run(folder_, settings_);
    EXPECT_TRUE(run.results().empty());
    run.add({{"n", 1}});
    run.add({{"n", 2}, {"text", "\xff \n"}});
    EXPECT_EQ(run.results().size(), 2u);
  }
  RunFolder run(folder_, settings_);
  ASSERT_EQ(run.results().size(), 2u);
  EXPECT_EQ(run.results()[1]["n"], 2);
  run.add({{"n", 3}});
  EXPECT_EQ(results(), "{\"n\":1}\n{\"n\":2,\"text\":\"\xef\xbf\xbd \\n\"}\n{\"n\":3}\n");
}

TEST_F(RunFolderTest, OtherSettingsAreNamed) {
  { RunFolder(folder_, settings_).add({{"n", 1}}); }
  Json other = settings_;
  other["seed"] = 6;
  EXPECT_THAT(error_of([&] { RunFolder(folder_, other); }), HasSubstr("seed = 5, not 6"));
  other = settings_;
  other.erase("depth");
  EXPECT_THAT(error_of([&] { RunFolder(folder_, other); }), HasSubstr("depth = 0.1, not nothing"));
  other = settings_;
  other["new"] = "x";
  EXPECT_THAT(error_of([&] { RunFolder(folder_, other); }), HasSubstr("new = nothing, not \"x\""));
  EXPECT_EQ(results(), "{\"n\":1}\n");
}

TEST_F(RunFolderTest, ALineThatWasCutIsDropped) {
  { RunFolder(folder_, settings_).add({{"n", 1}}); }
  write_results("{\"n\":1}\n{\"n\":");
  RunFolder run(folder_, settings_);
  EXPECT_EQ(run.results().size(), 1u);
  run.add({{"n", 2}});
  EXPECT_EQ(results(), "{\"n\":1}\n{\"n\":2}\n");
}

TEST_F(RunFolderTest, DamageIsNamed) {
  { RunFolder(folder_, settings_).add({{"n", 1}}); }
  write_results("{\"n\":1}\nrubbish\n{\"n\":2}\n");
  EXPECT_THAT(error_of([&] { RunFolder(folder_, settings_); }), HasSubstr("results.jsonl: line 2"));
  std::ofstream(folder_ / "settings.json") << "{";
  EXPECT_THAT(error_of([&] { RunFolder(folder_, settings_); }), HasSubstr("settings.json"));
  std::filesystem::remove(folder_ / "settings.json");
  EXPECT_THAT(error_of([&] { RunFolder(folder_, settings_); }), HasSubstr("no settings.json"));
}

TEST_F(RunFolderTest, OneRunAtATime) {
  const RunFolder run(folder_, settings_);
  EXPECT_THAT(error_of([&] { RunFolder(folder_, settings_); }), HasSubstr("another run"));
}

TEST_F(RunFolderTest, AFileInTheWay) {
  std::filesystem::create_directory(base_ / "deep");
  std::ofstream(folder_) << "x";
  EXPECT_THAT(error_of([&] { RunFolder(folder_, settings_); }), HasSubstr(folder_.string()));
}

TEST(CsvTest, Fields) {
  EXPECT_EQ(csv_field("plain"), "plain");
  EXPECT_EQ(csv_field(""), "");
  EXPECT_EQ(csv_field("a,b"), "\"a,b\"");
  EXPECT_EQ(csv_field("say \"x\"\n\x01"), "\"say \"\"x\"\"\\n\\x01\"");
}

}  // namespace
}  // namespace rwkvx
