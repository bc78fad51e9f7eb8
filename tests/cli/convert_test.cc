// convert: between the three formats, never half a file.
#include <cstring>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using test::TensorFile;
using testing::ElementsAre;
using testing::HasSubstr;

class ConvertTest : public test::ProgramTest {
 protected:
  std::string hybrid(const std::string& name = "model.safetensors") const {
    test::small_model(2, 1, DType::bf16).write(folder_ / name);
    return file(name);
  }
};

TEST_F(ConvertTest, RoundTripThroughAllFormats) {
  const std::string source = hybrid();
  ASSERT_EQ(run_program({"convert", source, file("1.gguf"), "--chunk-size", "32", "--chunk-top-k", "4"}).code,
            0);
  ASSERT_EQ(run_program({"convert", file("1.gguf"), file("2.PTH"), "--dtype", "bf16"}).code, 0);
  const Result last = run_program(
      {"convert", file("2.PTH"), file("3.safetensors"), "--chunk-size", "2048", "--chunk-top-k", "3"});
  ASSERT_EQ(last.code, 0);
  EXPECT_EQ(last.out, "") << "data on stdout only";
  EXPECT_THAT(last.err, HasSubstr(file("3.safetensors")));
  EXPECT_EQ(open_catalog(file("1.gguf")).format, FileFormat::gguf);
  EXPECT_EQ(open_catalog(file("2.PTH")).format, FileFormat::pth);
  TensorFile before = TensorFile::read(source), after = TensorFile::read(file("3.safetensors"));
  ASSERT_EQ(after.tensors.size(), before.tensors.size());
  for (const auto& tensor : before.tensors) {
    EXPECT_EQ(after.at(tensor.name).bytes, tensor.bytes) << tensor.name;
    EXPECT_EQ(after.at(tensor.name).shape, tensor.shape) << tensor.name;
  }
  const auto gguf = open_checkpoint(file("1.gguf"));
  EXPECT_EQ(gguf->config.chunk_size, 32);
  EXPECT_EQ(gguf->config.top_k, 4);
}

TEST_F(ConvertTest, Types) {
  const std::string source = hybrid();
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    ASSERT_EQ(
        run_program({"convert", source, file("out.safetensors"), "--dtype", std::string(name(dtype))}).code,
        0);
    for (const auto& tensor : TensorFile::read(file("out.safetensors")).tensors)
      EXPECT_EQ(tensor.dtype, dtype);
    EXPECT_THAT(folder_.files(), ElementsAre("model.safetensors", "out.safetensors"))
        << "replaced, nothing beside";
  }
  expect_error(run_program({"convert", source, file("out.gguf"), "--dtype", "q4"}), 2, {"--dtype"});
}

TEST_F(ConvertTest, TheTokenizerGoesIntoGguf) {
  const Result bytes = run_program({"convert", hybrid(), file("bytes.gguf")});
  ASSERT_EQ(bytes.code, 0);
  const Result tokens = run_program({"tokenize", "--model", file("bytes.gguf"), "a\xff"});
  EXPECT_EQ(tokens.out, "[97, 255]\n");
  // Without a tokenizer for its vocabulary a model is converted all the same, and the person is told.
  const Result golden =
      run_program({"convert", test::data("goldens/rwkv7/model.safetensors").string(), file("golden.gguf")});
  EXPECT_EQ(golden.code, 0);
  EXPECT_THAT(golden.err, testing::AllOf(HasSubstr("--vocab"), HasSubstr("160")));
}

TEST_F(ConvertTest, TheFormatComesFromTheEndingOrAFlag) {
  const std::string source = hybrid();
  for (const char* name : {"out", "out.bin", "out.onnx", "gguf", ".gguf"}) {
    SCOPED_TRACE(name);
    expect_error(run_program({"convert", source, file(name)}), 2, {file(name), "--format"});
  }
  ASSERT_EQ(run_program({"convert", source, file("out.bin"), "--format", "pth"}).code, 0);
  EXPECT_EQ(open_catalog(file("out.bin")).format, FileFormat::pth);
  expect_error(run_program({"convert", source, file("out.bin"), "--format", "zip"}), 2, {"--format"});
  EXPECT_THAT(folder_.files(), ElementsAre("model.safetensors", "out.bin"));
}

TEST_F(ConvertTest, TheInputIsNotOverwritten) {
  const std::string source = hybrid(), before = read_file(source);
  std::filesystem::create_symlink(source, file("link.safetensors"));
  std::filesystem::create_hard_link(source, file("hard.safetensors"));
  std::filesystem::create_directory(file("folder"));
  for (const std::string& out : {source, file("link.safetensors"), file("hard.safetensors"),
                                 file("folder/../model.safetensors"), std::string("model.safetensors")}) {
    SCOPED_TRACE(out);
    test::Setting here;
    here.folder = folder_ / "";
    expect_error(run_program({"convert", source, out, "--dtype", "f32"}, here), 2, {"input"});
    EXPECT_EQ(read_file(source), before);
  }
}

TEST_F(ConvertTest, NothingHalfWritten) {
  const std::string source = hybrid();
  with("old.gguf", "keep me");
  with("old.pth", "keep me");
  with("old.safetensors", "keep me");
  const std::vector<std::string> files = folder_.files();
  for (const char* ending : {"gguf", "pth", "safetensors"}) {
    SCOPED_TRACE(ending);
    const std::string old = file(std::string("old.") + ending),
                      missing = file(std::string("no/folder.") + ending);
    test::Setting small_disk;
    small_disk.largest_file = 50000;
    expect_error(run_program({"convert", source, old}, small_disk), 1, {old});
    EXPECT_EQ(read_file(old), "keep me");
    expect_error(run_program({"convert", source, missing}), 1, {missing});
    EXPECT_EQ(folder_.files(), files);
  }
  std::filesystem::create_directory(file("folder.gguf"));
  expect_error(run_program({"convert", source, file("folder.gguf")}), 1, {file("folder.gguf")});
  expect_error(run_program({"convert", source, "/dev/null", "--format", "gguf"}), 1, {"/dev/null"});
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(ConvertTest, ValuesThatFloat16CannotHold) {
  TensorFile model = test::small_model(1, 0);
  const float large = 1e6;
  std::memcpy(model.at("blocks.0.ffn.key.weight").bytes.data(), &large, sizeof large);
  model.write(folder_ / "model");
  for (const char* out : {"out.gguf", "out.pth", "out.safetensors"}) {
    expect_error(run_program({"convert", file("model"), file(out), "--dtype", "f16"}), 1,
                 {file("model"), "blocks.0.ffn.key.weight", "--dtype bf16"});
  }
  EXPECT_THAT(folder_.files(), ElementsAre("model"));
}

TEST_F(ConvertTest, ModelsThatAreNotWhole) {
  TensorFile model = test::small_model(2, 1);
  model.erase("rwkv.blocks.1.att.w2");
  model.write(folder_ / "model");
  expect_error(run_program({"convert", file("model"), file("out.gguf")}), 1,
               {file("model"), "rwkv.blocks.1.att.w2"});
  model = test::small_model(2, 1);
  model.add("rwkv.blocks.1.att.surprise", {3}, 0);
  model.write(folder_ / "model");
  expect_error(run_program({"convert", file("model"), file("out.gguf")}), 1,
               {file("model"), "rwkv.blocks.1.att.surprise"});
  EXPECT_THAT(folder_.files(), ElementsAre("model"));
}

}  // namespace
}  // namespace rwkvx
