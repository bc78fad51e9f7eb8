// expand: from a plain model to one with sparse blocks.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::run_program;

class ExpandProgramTest : public test::ProgramTest {
 protected:
  std::string plain() const {
    test::small_model(2, 0, DType::bf16).write(folder_ / "plain.safetensors");
    return file("plain.safetensors");
  }
};

TEST_F(ExpandProgramTest, WritesAModelWithTheChunksAskedFor) {
  const std::string source = plain();
  for (const char* name : {"out.gguf", "out.safetensors"}) {
    ASSERT_EQ(run_program({"expand", source, file(name), "--sparse-blocks", "2", "--chunk-size", "64",
                           "--chunk-top-k", "4"})
                  .code,
              0);
    const auto expanded = open_checkpoint(file(name));
    EXPECT_EQ(expanded->config.sparse_blocks, 2);
    EXPECT_EQ(expanded->config.chunk_size, 64);
    EXPECT_EQ(expanded->config.top_k, 4);
  }
  ASSERT_EQ(run_program({"expand", source, file("default.safetensors"), "--sparse-blocks", "1"}).code, 0);
  const auto expanded = open_checkpoint(file("default.safetensors"));
  EXPECT_EQ(expanded->config.chunk_size, 2048);
  EXPECT_EQ(expanded->config.top_k, 3);
}

TEST_F(ExpandProgramTest, PutsThemWhereAskedTo) {
  const std::string source = plain();
  ASSERT_EQ(
      run_program({"expand", source, file("out.gguf"), "--sparse-blocks", "2", "--sparse-after", "1,1"}).code,
      0);
  const auto info = run_program({"info", file("out.gguf"), "--json"});
  ASSERT_EQ(info.code, 0);
  EXPECT_EQ(nlohmann::json::parse(info.out).at("block_order"), "RSSR");
  expect_error(
      run_program({"expand", source, file("out.pth"), "--sparse-blocks", "2", "--sparse-after", "1,1"}), 1,
      {"out.pth", ".gguf"});
  expect_error(
      run_program({"expand", source, file("no.gguf"), "--sparse-blocks", "2", "--sparse-after", "1,3"}), 1,
      {"--sparse-after", "1,3"});
}

TEST_F(ExpandProgramTest, CopiesOutputsWhenAskedTo) {
  const std::string source = plain();
  ASSERT_EQ(
      run_program({"expand", source, file("out.safetensors"), "--sparse-blocks", "2", "--copy-outputs"}).code,
      0);
  const auto expanded = open_checkpoint(file("out.safetensors"));
  for (const char* tail : {"att.output.weight", "ffn.value.weight", "ffn.key.weight"}) {
    const auto from = expanded->catalog.find(std::string("blocks.1.") + tail)->data.raw(),
               to = expanded->catalog.find(std::string("moba.1.") + tail)->data.raw();
    EXPECT_TRUE(std::equal(from.begin(), from.end(), to.begin(), to.end())) << tail;
  }
}

TEST_F(ExpandProgramTest, Errors) {
  const std::string source = plain();
  expect_error(run_program({"expand", source, file("out.gguf")}), 2, {"--sparse-blocks"});
  expect_error(run_program({"expand", source, file("out.gguf"), "--sparse-blocks", "0"}), 2,
               {"--sparse-blocks"});
  expect_error(run_program({"expand", source, file("out.gguf"), "--sparse-blocks", "3"}), 1,
               {source, "--sparse-blocks", "2"});
  expect_error(run_program({"expand", source, source, "--sparse-blocks", "1"}), 2, {"input"});
  ASSERT_EQ(run_program({"expand", source, file("out.safetensors"), "--sparse-blocks", "1"}).code, 0);
  expect_error(
      run_program({"expand", file("out.safetensors"), file("again.safetensors"), "--sparse-blocks", "1"}), 1,
      {file("out.safetensors"), "already"});
}

}  // namespace
}  // namespace rwkvx
