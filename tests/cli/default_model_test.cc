// Which model a command runs when it is given none.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using test::Setting;
using testing::HasSubstr;

/// `RWKVX_MODEL=` for what the program brings itself, whatever the developer's shell says.
Setting with_model(const std::string& file) {
  Setting setting;
  setting.environment = {"RWKVX_MODEL=" + file};
  return setting;
}

class DefaultModelTest : public test::ProgramTest {
 protected:
  static std::string model_of(const Result& info) {
    EXPECT_EQ(info.code, 0) << info.err;
    return info.code == 0 ? nlohmann::json::parse(info.out).at("file").get<std::string>() : "";
  }
  const std::string shipped_ = test::models(RWKVX_DEFAULT_MODEL).string();
};

TEST_F(DefaultModelTest, InTheSourceItIsTheOneInModels) {
  EXPECT_EQ(model_of(run_program({"info", "--json"}, with_model(""))), shipped_);
}

TEST_F(DefaultModelTest, AModelThatIsGivenWins) {
  const std::string other = test::data("goldens/rwkvx/model.safetensors").string();
  EXPECT_EQ(model_of(run_program({"info", other, "--json"}, with_model(shipped_))), other);
}

TEST_F(DefaultModelTest, TheEnvironmentNamesAnother) {
  const std::string other = test::data("goldens/rwkvx/model.safetensors").string();
  EXPECT_EQ(model_of(run_program({"info", "--json"}, with_model(other))), other);
  for (const std::string& missing : {file("none.gguf"), folder_.operator/("").string()}) {
    expect_error(run_program({"info"}, with_model(missing)), 1, {missing, "RWKVX_MODEL"});
  }
}

TEST_F(DefaultModelTest, AnInstalledProgramHasItsOwn) {
  std::filesystem::create_directories(file("bin"));
  std::filesystem::copy_file(RWKVX_PROGRAM, file("bin/rwkvx"));
  Setting setting = with_model("");
  setting.program = file("bin/rwkvx");
  EXPECT_EQ(model_of(run_program({"info", "--json"}, setting)), shipped_);  // none is installed

  const std::string installed = file(std::string("share/rwkvx/") + RWKVX_DEFAULT_MODEL);
  std::filesystem::create_directories(Path(installed).parent_path());
  std::filesystem::copy_file(shipped_, installed);
  EXPECT_EQ(model_of(run_program({"info", "--json"}, setting)),
            std::filesystem::canonical(installed).string());
  std::filesystem::create_symlink("bin/rwkvx", file("link"));
  setting.program = file("link");
  EXPECT_EQ(model_of(run_program({"info", "--json"}, setting)),
            std::filesystem::canonical(installed).string());
  for (const char* folder : {"bin", "share", "link"}) std::filesystem::remove_all(file(folder));
}

TEST_F(DefaultModelTest, EveryCommandOfOneModelTakesIt) {
  const Setting setting = with_model(proto_);
  const std::string text = with("text.txt", std::string(2000, 'a') + std::string(2000, 'b'));
  const std::vector<std::vector<std::string>> commands{
      {"info"},
      {"generate", "--prompt", "The", "--max-tokens", "2"},
      {"chat", "--max-tokens", "1"},
      {"logits", "--text", "abc", "--out", file("logits.safetensors")},
      {"needle", "--lengths", "512", "--depths", "50", "--repeats", "1"},
      {"bench", "--prefill", "16", "--decode", "2"},
      {"recall", "--file", text, "--queries", "4"}};
  for (const auto& command : commands) {
    const Result result = run_program(command, setting);
    EXPECT_EQ(result.code, 0) << command.front() << ": " << result.err;
  }
}

TEST_F(DefaultModelTest, CommandsThatWriteOrCompareModelsAskForThem) {
  const Setting setting = with_model(proto_);
  expect_error(run_program({"convert"}, setting), 2, {"IN"});
  expect_error(run_program({"expand", "--sparse-blocks", "1"}, setting), 2, {"IN"});
  expect_error(run_program({"loss", with("text.txt", "abc")}, setting), 2, {"no model is given"});
}

}  // namespace
}  // namespace rwkvx
