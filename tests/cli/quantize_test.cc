// quantize: which types, what is refused, and the report.
#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

class QuantizeTest : public test::ProgramTest {};

DType type_of(const Path& path, const std::string& tensor) {
  return open_checkpoint(path)->catalog.find(tensor)->data.dtype();
}

TEST_F(QuantizeTest, TypesByRoleAndByName) {
  const std::string out = file("out.gguf");
  const Result result = run_program({"quantize", proto_, out, "--type", "q4_0", "--keep", "blocks.0.*",
                                     "--set", "moba.*.att.*=q8_0", "--set", "head.weight=f16"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr(out));
  EXPECT_EQ(type_of(out, "blocks.0.ffn.key.weight"), DType::bf16);
  EXPECT_EQ(type_of(out, "blocks.1.ffn.key.weight"), DType::q4_0);
  EXPECT_EQ(type_of(out, "moba.0.att.key.weight"), DType::q8_0);
  EXPECT_EQ(type_of(out, "moba.0.ffn.key.weight"), DType::q4_0);
  EXPECT_EQ(type_of(out, "head.weight"), DType::f16);
  EXPECT_EQ(type_of(out, "emb.weight"), DType::q8_0);
  EXPECT_EQ(type_of(out, "blocks.1.att.w2"), DType::bf16);
  EXPECT_EQ(type_of(out, "blocks.1.att.w0"), DType::f32);
  EXPECT_THAT(run_program({"info", out}).out, testing::AllOf(HasSubstr("q4_0 "), HasSubstr("q8_0 ")));
  const Result text = run_program({"generate", out, "--prompt", "It was", "--max-tokens", "4"});
  EXPECT_EQ(text.code, 0) << text.err;
}

TEST_F(QuantizeTest, TheReportComparesWithTheSource) {
  const std::string text = with("text.txt", std::string(3000, 'a') + " It was the best of times. ");
  const Result result = run_program(
      {"quantize", proto_, file("out.gguf"), "--type", "q8_0", "--report", text, "--max-tokens", "200"});
  ASSERT_EQ(result.code, 0) << result.err;
  for (const char* part : {"before", "q8_0", "KL", "perplexity", "over 199 tokens"}) {
    EXPECT_THAT(result.out, HasSubstr(part));
  }
}

TEST_F(QuantizeTest, WrongUsage) {
  const std::string out = file("out.gguf");
  expect_error(run_program({"quantize", proto_, out}), 2, {"--type"});
  expect_error(run_program({"quantize", proto_, out, "--type", "q3_k"}), 2, {"--type"});
  expect_error(run_program({"quantize", proto_, file("out.pth"), "--type", "q8_0"}), 2, {"out.pth", ".gguf"});
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--set", "blocks"}), 2,
               {"--set", "blocks"});
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--set", "blocks=i8"}), 2, {"--set"});
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--report", file("none")}), 2,
               {"--report", file("none")});
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--set", "nothing.*=q4_0"}), 2,
               {"--set", "nothing.*=q4_0", proto_});
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--keep", "blocks.0.att.w0"}), 2,
               {"--keep", "blocks.0.att.w0"});  // a vector
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--max-tokens", "16"}), 2,
               {"--report"});
  const std::string empty = with("empty.txt", "");
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--report", empty}), 1,
               {empty, "no text"});
  expect_error(
      run_program({"quantize", proto_, out, "--type", "q8_0", "--report", empty, "--max-tokens", "16q"}), 2,
      {"--max-tokens", "16q"});
  ASSERT_TRUE(std::filesystem::remove(empty));
  // 128 channels are no whole blocks of 256: said before a file is there.
  expect_error(run_program({"quantize", proto_, out, "--type", "q8_0", "--set", "head.weight=q4_k"}), 1,
               {"output.weight", "256"});
  EXPECT_TRUE(folder_.files().empty());
}

TEST_F(QuantizeTest, ConvertMakesFloatsOfQuantisedModels) {
  ASSERT_EQ(run_program({"quantize", proto_, file("q.gguf"), "--type", "q8_0"}).code, 0);
  expect_error(run_program({"convert", file("q.gguf"), file("f.pth")}), 1, {"q8_0", "--dtype bf16"});
  ASSERT_EQ(run_program({"convert", file("q.gguf"), file("f.safetensors"), "--dtype", "bf16"}).code, 0);
  EXPECT_EQ(type_of(file("f.safetensors"), "blocks.1.ffn.key.weight"), DType::bf16);
}

}  // namespace
}  // namespace rwkvx
