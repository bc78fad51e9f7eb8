// The flags of long contexts on the commands that run a model, bench and recall.
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace rwkvx {
namespace {

using test::expect_error;
using test::Result;
using test::run_program;
using testing::HasSubstr;

class LongContextTest : public test::ProgramTest {
 protected:
  std::vector<std::string> generate(const std::vector<std::string>& more) const {
    std::vector<std::string> all{"generate",     proto_, "--prompt",      std::string(700, 'x') + "The",
                                 "--max-tokens", "8",    "--temperature", "0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
};

TEST_F(LongContextTest, EveryPolicyTypeAndSelectionRuns) {
  const Result full = run_program(generate({}));
  ASSERT_EQ(full.code, 0) << full.err;
  EXPECT_EQ(run_program(generate({"--kv", "disk"})).out, full.out);
  EXPECT_EQ(run_program(generate({"--kv", "host:0.5"})).out, full.out);
  EXPECT_EQ(run_program(generate({"--kv", "disk:" + file(""), "--kv-dtype", "bf16"})).out, full.out);
  for (const char* kv : {"full", "host", "disk", "bounded", "bounded:200,50,100"}) {
    for (const char* dtype : {"f32", "bf16", "int8"}) {
      for (const char* select : {"mean", "max:16", "full"}) {
        const Result result = run_program(generate({"--kv", kv, "--kv-dtype", dtype, "--select", select}));
        EXPECT_EQ(result.code, 0) << kv << ' ' << dtype << ' ' << select << result.err;
      }
    }
  }
}

TEST_F(LongContextTest, WrongValues) {
  expect_error(run_program(generate({"--kv", "forget"})), 2,
               {"--kv forget", "full, host[:GB], disk[:FOLDER] or bounded"});
  expect_error(run_program(generate({"--kv", "bounded:100,90,80"})), 2, {"window"});
  expect_error(run_program(generate({"--select", "best"})), 2, {"--select best"});
  expect_error(run_program(generate({"--kv-dtype", "q4"})), 2, {"--kv-dtype"});
  expect_error(run_program(generate({"--kv", "disk:" + file("none")})), 1, {file("none")});
  expect_error(run_program(generate({"--select", "max:7"})), 1, {"--select max:7", "64"});
}

TEST_F(LongContextTest, BoundedStatesGoOnUnderTheSameBoundsOnly) {
  const std::vector<std::string> bounds{"--kv", "bounded:200,50,100"};
  ASSERT_EQ(run_program(generate({"--kv", bounds[1], "--state-out", file("state")})).code, 0);
  std::vector<std::string> go_on{"generate", proto_, "--state-in", file("state"), "--max-tokens", "4"};
  expect_error(run_program(go_on), 1, {file("state"), bounds[1]});
  go_on.insert(go_on.end(), bounds.begin(), bounds.end());
  EXPECT_EQ(run_program(go_on).code, 0);
  ASSERT_EQ(run_program(generate({"--state-out", file("state")})).code, 0);
  expect_error(run_program(go_on), 1, {file("state"), "more than --kv bounded:200,50,100 keeps"});
}

TEST_F(LongContextTest, BenchMeasuresEveryLength) {
  const Result result = run_program(
      {"bench", proto_, "--long", "--lengths", "100..400", "--decode", "5", "--kv", "disk", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  ASSERT_EQ(json["lengths"].size(), 3u);
  EXPECT_EQ(json["kv"], "disk");
  for (size_t i = 0; i < 3; ++i) {
    const auto& row = json["lengths"][i];
    EXPECT_EQ(row["context"], 100 << i);
    EXPECT_EQ(row["decode_tokens"], 5);
    EXPECT_GT(row["prefill_tokens_per_second"], 0);
    EXPECT_GE(row["decode_ms_worst"], row["decode_ms_p99"]);
    EXPECT_GE(row["decode_ms_p99"], row["decode_ms_median"]);
    EXPECT_GT(row["decode_ms_median"], 0);
    EXPECT_GT(row["kv_file_bytes"], 0);
    EXPECT_GT(row["resident_bytes"], 0);
  }
  const Result table = run_program({"bench", proto_, "--prefill", "50", "--decode", "2"});
  EXPECT_EQ(table.code, 0);
  EXPECT_THAT(table.out, HasSubstr("prefill t/s"));
  EXPECT_EQ(nlohmann::json::parse(
                run_program({"bench", proto_, "--prefill", "50", "--decode", "2", "--json"}).out)["context"],
            50);
  const auto both = nlohmann::json::parse(
      run_program({"bench", proto_, "--prefill", "50", "--context", "0.25k", "--decode", "2", "--json"}).out);
  EXPECT_EQ(both["prefill_tokens"], 50);
  EXPECT_EQ(both["context"], 256);
  EXPECT_GT(both["decode_gigaflops_per_second"], 0);
  expect_error(run_program({"bench", proto_, "--long", "--lengths", "0"}), 2, {"--lengths"});
  expect_error(run_program({"bench", proto_, "--long", "--prefill", "50"}), 2, {"--prefill"});
  expect_error(run_program({"bench", proto_, "--decode", "abc"}), 2, {"--decode", "abc"});
}

TEST_F(LongContextTest, BenchTakesTurnsAtSavedStates) {
  const std::string text(300, 'x');
  for (const auto& [name, prompt] : {std::pair{"short", text.substr(0, 100)}, std::pair{"long", text}}) {
    ASSERT_EQ(
        run_program({"generate", proto_, "--prompt", prompt, "--max-tokens", "0", "--state-out", file(name)})
            .code,
        0);
  }
  const std::vector<std::string> command{"bench",      proto_,     "--states", file("short"),
                                         file("long"), "--rounds", "3",        "--prefill",
                                         "20",         "--decode", "4",        "--json"};
  const Result result = run_program(command);
  ASSERT_EQ(result.code, 0) << result.err;
  const auto rows = nlohmann::json::parse(result.out)["lengths"];
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0]["context"], 100);
  EXPECT_EQ(rows[1]["context"], 300);
  for (const auto& row : rows) {
    EXPECT_EQ(row["decode_tokens"], 12) << "of all rounds";
    EXPECT_EQ(row["prefill_tokens"], 20);
    EXPECT_GT(row["prefill_tokens_per_second"], 0);
    EXPECT_GT(row["decode_ms_median"], 0);
  }
  expect_error(run_program({"bench", proto_, "--states", file("none")}), 1, {file("none")});
  expect_error(run_program({"bench", proto_, "--long", "--states", file("long")}), 2, {"--states"});
}

TEST_F(LongContextTest, BenchDecodesBatchesAndComparesWithTheMachine) {
  const Result result = run_program(
      {"bench", proto_, "--prefill", "200", "--decode", "4", "--batch", "3", "--threads", "1", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  EXPECT_EQ(json["threads"], 1);
  EXPECT_NE(json["hardware"], "");
  EXPECT_EQ(json["batch"], 3);
  EXPECT_EQ(json["decode_tokens"], 4);
  EXPECT_NEAR(json["decode_tokens_per_second"], 3e3 / json["decode_ms_median"].get<double>(), 1e-6);
  for (const char* rate : {"machine_read_gigabytes_per_second", "machine_product_gigaflops_per_second",
                           "prefill_gigaflops_per_second"}) {
    EXPECT_GT(json[rate], 0) << rate;
  }
  EXPECT_NEAR(json["prefill_fraction_of_machine"],
              json["prefill_gigaflops_per_second"].get<double>() /
                  json["machine_product_gigaflops_per_second"].get<double>(),
              1e-9);
  expect_error(run_program({"bench", proto_, "--batch", "0"}), 2, {"--batch"});
}

TEST_F(LongContextTest, RecallOfTheChunksThatAreChosen) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += static_cast<char>('a' + i * i % 23);
  const Result result = run_program({"recall", proto_, "--text", text, "--queries", "8", "--json"});
  ASSERT_EQ(result.code, 0) << result.err;
  const auto json = nlohmann::json::parse(result.out);
  ASSERT_EQ(json["heads"].size(), 4u) << "2 blocks of 2 heads";
  for (const auto& head : json["heads"]) {
    EXPECT_GT(head["queries"], 0);
    EXPECT_LE(head["best_possible"], 1 + 1e-9);
    for (const auto& [rule, about] : json["rules"].items()) {
      EXPECT_LE(head[rule]["of_best"], 1 + 1e-9) << rule;
      EXPECT_GT(head[rule]["of_best"], 0) << rule;
    }
    EXPECT_EQ(head["mean"]["recall"], head["max64"]["recall"]) << "a part as large as the chunk";
  }
  expect_error(run_program({"recall", proto_, "--text", "short"}), 1, {"5 tokens", "after 256"});
  expect_error(run_program({"recall", proto_, "--text", text, "--kv", "bounded"}), 2, {"--kv bounded"});
}

}  // namespace
}  // namespace rwkvx
