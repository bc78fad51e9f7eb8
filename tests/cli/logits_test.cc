// logits: float32 [B, T, V] for tokens [B, T], as the library computes them.
#include <limits>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using test::TensorFile;

class LogitsTest : public test::ProgramTest {
 protected:
  template <typename T>
  std::string tokens_file(const std::string& name, Shape shape, const std::vector<T>& ids,
                          const std::string& tensor = "tokens") const {
    TensorFile tokens;
    tokens.add(tensor, ConstView(ids.data(), DTypeOf<T>::value, shape));
    tokens.write(folder_ / name);
    return file(name);
  }
};

TEST_F(LogitsTest, MatchTheLibrary) {
  const auto golden = test::read_golden("rwkvx");
  const int64_t B = 2, T = 40;
  std::vector<int64_t> wide;
  for (const auto& row : golden.tokens) wide.insert(wide.end(), row.begin(), row.begin() + T);
  const std::vector<int32_t> narrow(wide.begin(), wide.end());
  const std::string in64 = tokens_file("in64", {B, T}, wide), in32 = tokens_file("in32", {B, T}, narrow);

  for (const std::string backend : {"reference", "cpu"}) {
    for (const Precision precision : {Precision::f32, Precision::bf16}) {
      SCOPED_TRACE(backend + " " + std::string(name(precision)));
      const Result result =
          run_program({"logits", golden.model.string(), "--tokens", in64, "--out", file("out"),
                       "--chunk-size", "16", "--chunk-top-k", "3", "--backend", backend, "--precision",
                       std::string(name(precision)), "--threads", "2"});
      ASSERT_EQ(result.code, 0) << result.err;
      EXPECT_EQ(result.out, "");
      TensorFile out = TensorFile::read(folder_ / "out");
      const ConstView logits = out.at("logits").view();
      ASSERT_EQ(logits.dtype(), DType::f32);
      ASSERT_EQ(logits.shape(), (Shape{B, T, 160}));
      EXPECT_EQ(out.at("tokens").bytes, TensorFile::read(in64).at("tokens").bytes);
      const auto model = test::open_model(golden.model, backend, precision, golden.options);
      for (int64_t b = 0; b < B; ++b) {
        State state = model->new_state();
        const auto expected = test::run(
            *model, state, std::span(golden.tokens[static_cast<size_t>(b)]).first(static_cast<size_t>(T)));
        const std::span<const float> got(logits.as<float>() + b * T * 160, expected.size());
        if (precision == Precision::f32) {
          EXPECT_LE(test::distance(got, expected).max, 2e-5);
        }
        EXPECT_LE(test::row_error(got, expected, 160, 0.9), 0.02);
      }
    }
  }
  // The defaults are the cpu backend in float32, and i32 does as well.
  ASSERT_EQ(run_program({"logits", golden.model.string(), "--tokens", in32, "--out", file("narrow"),
                         "--chunk-size", "16", "--chunk-top-k", "3"})
                .code,
            0);
  TensorFile narrow_out = TensorFile::read(folder_ / "narrow");
  const ConstView narrow_logits = narrow_out.at("logits").view();
  std::vector<float> expected;
  for (const auto& row : std::span(golden.tokens)) {
    const float* from = golden.logits.as<float>() + (&row - golden.tokens.data()) * 150 * 160;
    expected.insert(expected.end(), from, from + T * 160);
  }
  EXPECT_LE(test::distance(std::span(narrow_logits.as<float>(), expected.size()), expected).max, 2e-4);
}

TEST_F(LogitsTest, ManySequencesAndLongOnes) {
  // More than one pass takes, in both directions.
  test::small_model(1, 1).write(folder_ / "model");
  const auto model = test::open_model(folder_ / "model", "cpu", Precision::f32, CheckpointOptions{16, 2});
  for (const auto& [B, T] : {std::pair<int64_t, int64_t>{1030, 2}, {2, 1500}}) {
    const auto random = test::random_tokens(static_cast<size_t>(B * T), 256, 3);
    const std::string in = tokens_file("in", {B, T}, std::vector<int64_t>(random.begin(), random.end()));
    const Result result = run_program({"logits", file("model"), "--tokens", in, "--out", file("out"),
                                       "--chunk-size", "16", "--chunk-top-k", "2"});
    ASSERT_EQ(result.code, 0) << result.err;
    TensorFile out = TensorFile::read(folder_ / "out");
    for (const int64_t b : {int64_t{0}, B - 1}) {
      State state = model->new_state();
      const auto row = std::span(random).subspan(static_cast<size_t>(b * T), static_cast<size_t>(T));
      const auto expected = test::run(*model, state, row);
      const float* got = out.at("logits").view().as<float>() + b * T * 256;
      EXPECT_LE(test::distance(std::span(got, expected.size()), expected).max, 2e-5) << B << " " << b;
    }
  }
}

TEST_F(LogitsTest, OfText) {
  const std::string text = "in\xff";
  ASSERT_EQ(run_program({"logits", proto_, "--text", text, "--out", file("a")}).code, 0);
  ASSERT_EQ(run_program({"logits", proto_, "--text-file", with("text", text), "--out", file("b")}).code, 0);
  ASSERT_EQ(run_program({"logits", proto_, "--text-file", "-", "--out", file("c")}, {.input = text}).code, 0);
  ASSERT_EQ(run_program({"logits", proto_, "--tokens", tokens_file<int64_t>("t", {3}, {'i', 'n', 255}),
                         "--out", file("d")})
                .code,
            0);
  TensorFile a = TensorFile::read(file("a"));
  EXPECT_EQ(a.at("logits").shape, (Shape{1, 3, 256}));
  for (const char* other : {"b", "c", "d"}) {
    EXPECT_EQ(TensorFile::read(file(other)).at("logits").bytes, a.at("logits").bytes) << other;
  }
}

TEST_F(LogitsTest, TokensOutsideTheVocabulary) {
  for (const int64_t bad :
       {int64_t{256}, int64_t{-1}, int64_t{1} << 40, std::numeric_limits<int64_t>::min()}) {
    const std::string in = tokens_file<int64_t>("in", {2, 3}, {1, 2, 3, 4, bad, 6});
    expect_error(run_program({"logits", proto_, "--tokens", in, "--out", file("out")}), 1,
                 {std::to_string(bad)});
  }
  EXPECT_FALSE(std::filesystem::exists(file("out")));
  const std::string in = tokens_file<int64_t>("in", {2, 3}, {1, 2, 3, 4, 300, 6});
  expect_error(run_program({"logits", proto_, "--tokens", in, "--out", file("out")}), 1,
               {"300", "sequence 1, position 1", "256"});
}

TEST_F(LogitsTest, TokenFilesThatCannotBeUsed) {
  const auto refused = [&](const std::string& in, const std::vector<std::string>& parts) {
    SCOPED_TRACE(in);
    expect_error(run_program({"logits", proto_, "--tokens", in, "--out", file("out")}), 1, parts);
    EXPECT_FALSE(std::filesystem::exists(file("out")));
  };
  refused(file("none"), {file("none")});
  refused(with("noise", "no safetensors"), {file("noise")});
  refused(tokens_file<int64_t>("name", {1, 2}, {1, 2}, "ids"), {file("name"), "'tokens'"});
  refused(tokens_file<float>("floats", {1, 2}, {1, 2}), {file("floats"), "f32", "i64"});
  refused(tokens_file<int64_t>("rank", {1, 2, 1}, {1, 2}), {file("rank"), "[1, 2, 1]", "[B, T]"});
  refused(tokens_file<int64_t>("empty", {2, 0}, {}), {file("empty"), "[2, 0]"});
}

TEST_F(LogitsTest, WrongUsage) {
  const std::string in = tokens_file<int64_t>("in", {1, 2}, {1, 2});
  expect_error(run_program({"logits", proto_, "--out", file("out")}), 2, {"--tokens", "--text"});
  expect_error(run_program({"logits", proto_, "--tokens", in, "--text", "x", "--out", file("out")}), 2,
               {"--tokens"});
  expect_error(run_program({"logits", proto_, "--text", "x"}), 2, {"--out"});
  expect_error(run_program({"logits", proto_, "--text", "", "--out", file("out")}), 1, {"empty"});
  expect_error(run_program({"logits", test::data("goldens/rwkv7/model.safetensors").string(), "--text", "x",
                            "--out", file("out")}),
               1, {"model.safetensors", "--vocab"});
}

TEST_F(LogitsTest, PlacesThatCannotBeWrittenTo) {
  expect_error(run_program({"logits", proto_, "--text", "x", "--out", file("no/folder/out")}), 1,
               {file("no/folder/out")});
  std::filesystem::create_directory(file("folder"));
  expect_error(run_program({"logits", proto_, "--text", "x", "--out", file("folder")}), 1, {file("folder")});
  with("old", "keep me");
  test::Setting small_disk;
  small_disk.largest_file = 2000;
  expect_error(run_program({"logits", proto_, "--text", "a longer text", "--out", file("old")}, small_disk),
               1, {file("old")});
  EXPECT_EQ(read_file(file("old")), "keep me");
  EXPECT_THAT(folder_.files(), testing::ElementsAre("folder", "old"));
}

}  // namespace
}  // namespace rwkvx
