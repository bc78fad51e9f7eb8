#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

class LossTest : public test::ProgramTest {
 protected:
  ~LossTest() override { std::filesystem::remove_all(folder_ / "out"); }
  std::string out(const std::string& name) const { return read_file(Path(file("out")) / name); }
  static size_t lines(const std::string& text) {
    return static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
  }
  static std::string text_of(size_t sentences) {
    std::string text;
    for (size_t i = 0; i < sentences; ++i) text += "It was the year " + std::to_string(1800 + i) + ". ";
    return text;
  }
  const std::string tiny_ = test::data("rwkv7-tiny-834k/model-f16.gguf").string();
};

TEST_F(LossTest, OfTwoModelsInOnePicture) {
  const std::string book = with("book.txt", text_of(60));
  const std::string lines_file =
      with("more.jsonl", "{\"text\": \"" + text_of(20) + "\"}\n{\"text\": \"Short.\"}\n");
  const Result result = run_program({"loss", proto_, tiny_, book, lines_file, "--precision", "f32", "--json",
                                     "--out", file("out"), "--picture", file("p.svg")});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  ASSERT_EQ(json["models"].size(), 2u);
  for (const auto& model : json["models"]) {
    EXPECT_EQ(model["documents"], 3);
    EXPECT_EQ(model["tokens"], text_of(60).size() - 1 + text_of(20).size() - 1 + 5);
    int64_t tokens = 0;
    for (const auto& bucket : model["buckets"]) tokens += bucket["tokens"].get<int64_t>();
    EXPECT_EQ(model["tokens"], tokens);
    // A token is a byte here.
    EXPECT_NEAR(model["perplexity"].get<double>(), std::exp2(model["bits_per_byte"].get<double>()), 1e-6);
    EXPECT_GT(model["perplexity_error"].get<double>(), 0);
  }
  EXPECT_EQ(lines(out("results.jsonl")), 6u);
  EXPECT_THAT(out("results.csv"), HasSubstr("rwkvx-proto-1.3m,0,64,3,"));
  EXPECT_THAT(out("loss.svg"), HasSubstr(">rwkvx-proto-1.3m<"));
  EXPECT_THAT(out("loss.svg"), HasSubstr(">model-f16<"));
  EXPECT_EQ(out("loss.svg"), read_file(file("p.svg")));

  // Again: everything is there, also in other orders and for a part.
  const Result again =
      run_program({"loss", lines_file, tiny_, book, "--precision", "f32", "--json", "--out", file("out")});
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("3 of 3 documents are done already"));
  EXPECT_EQ(lines(out("results.jsonl")), 6u);
  EXPECT_DOUBLE_EQ(nlohmann::json::parse(again.out)["models"][0]["loss"].get<double>(),
                   json["models"][1]["loss"].get<double>());
  expect_error(run_program({"loss", proto_, book, "--buckets", "64", "--out", file("out")}), 1,
               {"buckets = \"doubling\", not \"64\""});
}

TEST_F(LossTest, LimitsOfLength) {
  const std::string book = with("book.txt", text_of(60)), note = with("note.txt", text_of(2));
  const Result result = run_program({"loss", proto_, book, note, "--max-tokens", "200", "--min-tokens", "100",
                                     "--buckets", "50", "--measure", "bits-per-byte"});
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("150 - 200"));
  EXPECT_THAT(result.out, testing::Not(HasSubstr("200 - 250")));
  EXPECT_THAT(result.out, HasSubstr("(bits per byte)"));
  EXPECT_THAT(result.out, testing::Not(HasSubstr("±")));  // of one document alone
}

TEST_F(LossTest, AnInterruptedRunGoesOn) {
  const std::string first = with("a.txt", text_of(5)), second = with("b.txt", text_of(20000));
  {
    test::Program program({"loss", proto_, first, second, "--out", file("out")});
    const Path results = Path(file("out")) / "results.jsonl";
    while (program.running() && (!std::filesystem::exists(results) || lines(read_file(results)) == 0)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    program.send(SIGINT);
    const Result stopped = program.wait();
    EXPECT_EQ(stopped.code, 130);
    EXPECT_THAT(stopped.err, HasSubstr("the same command goes on from there"));
  }
  const Result result = run_program({"loss", proto_, first, "--out", file("out")});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("1 of 1 documents are done already"));
}

TEST_F(LossTest, BadInput) {
  const std::string text = with("text.txt", "some text");
  expect_error(run_program({"loss"}), 2, {"MODELS_AND_FILES"});
  expect_error(run_program({"loss", proto_}), 2, {"no documents"});
  expect_error(run_program({"loss", text}), 2, {"no model"});
  expect_error(run_program({"loss", proto_, text, "--buckets", "0"}), 2, {"--buckets"});
  expect_error(run_program({"loss", proto_, text, "--max-tokens", "many"}), 2, {"--max-tokens"});
  expect_error(run_program({"loss", proto_, text, "--min-tokens", "1k"}), 1, {"--min-tokens", "none of 1"});
  expect_error(run_program({"loss", proto_, file("missing.txt")}), 1, {"missing.txt"});
  expect_error(run_program({"loss", proto_, with("empty.txt", "")}), 1, {"empty.txt", "no text"});
  expect_error(run_program({"loss", proto_, with("bad.jsonl", "{}\n")}), 1, {"bad.jsonl", "line 1"});
  expect_error(run_program({"loss", proto_, text, "--picture", file("a.gif")}), 1, {"a.gif"});
  expect_error(run_program({"loss", file("missing.gguf"), text}), 1, {"missing.gguf"});
  expect_error(run_program({"loss", test::data("goldens/rwkvx/model.pth").string(), text, "--chunk-size",
                            "64", "--chunk-top-k", "2"}),
               1, {"--vocab"});
}

}  // namespace
}  // namespace rwkvx
