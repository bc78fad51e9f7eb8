#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "error_of.h"
#include "evaluation/needle_plan.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PromptsFileTest : public ::testing::Test {
 protected:
  NeedlePlan read(const std::string& text) const {
    std::ofstream(folder_ / "p.jsonl", std::ios::binary) << text;
    return read_needle_prompts(folder_ / "p.jsonl", *make_byte_tokenizer());
  }
  const test::TemporaryFolder folder_;
};

TEST_F(PromptsFileTest, OursAndRulers) {
  const NeedlePlan plan = read(
      "{\"prompt\": \"abc\", \"answer\": \"d\", \"depth\": 0.25}\n\n"
      "{\"input\": \"hay\", \"answer_prefix\": \" is\", \"outputs\": [\"1\", \"2\"]}");
  ASSERT_EQ(plan.samples.size(), 2u);
  const auto tokenizer = make_byte_tokenizer();
  EXPECT_EQ(tokenizer->decode(plan.prompt(plan.samples[0])), "abc");
  EXPECT_EQ(plan.samples[0].length, 3);
  EXPECT_EQ(plan.samples[0].depth, 0.25);
  EXPECT_THAT(plan.samples[0].answers, ElementsAre("d"));
  EXPECT_EQ(tokenizer->decode(plan.prompt(plan.samples[1])), "hay is");
  EXPECT_THAT(plan.samples[1].answers, ElementsAre("1", "2"));
  const size_t both[] = {0, 1};
  EXPECT_EQ(needle_cost(plan, both), 9);
}

TEST_F(PromptsFileTest, DamagedLinesAreNamed) {
  const std::string good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
  for (const char* bad :
       {"{", "[]", "{\"prompt\": \"a\"}", "{\"answer\": \"a\"}", "{\"prompt\": 1, \"answer\": \"a\"}",
        "{\"prompt\": \"\", \"answer\": \"a\"}", "{\"prompt\": \"a\", \"answer\": \"\"}",
        "{\"prompt\": \"a\", \"outputs\": [1]}", "{\"prompt\": \"a\", \"answer\": \"b\", \"depth\": 2}"}) {
    EXPECT_THAT(error_of([&] { read(good + bad + "\n"); }), HasSubstr("line 2")) << bad;
  }
  EXPECT_THAT(error_of([&] { read("\n"); }), HasSubstr("no prompts"));
}

}  // namespace
}  // namespace rwkvx
