#include "retrieval/needle_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <regex>
#include <set>

#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

TEST(NeedleTaskTest, EveryTaskIsSound) {
  for (const std::string& name : needle_task_names()) {
    const NeedleTask task = needle_task(name);
    EXPECT_EQ(task.name, name);
    EXPECT_NO_THROW(check_needle_task(task));
    EXPECT_FALSE(task.text.question.empty());
  }
  EXPECT_EQ(needle_task("niah-3").value, NeedleValue::uuid);
  EXPECT_EQ(needle_task("multi-key").distractors, 3);
  EXPECT_EQ(needle_task("multi-value").values, 4);
  EXPECT_THAT(error_of([] { needle_task("haystack"); }), HasSubstr("passkey, passkey-bare, niah-1"));
}

TEST(NeedleTaskTest, RulersWords) {
  // Appendix B of arXiv 2404.06654.
  const NeedleText single = needle_task("niah-2").text, several = needle_task("multi-value").text;
  EXPECT_EQ(fill_in(single.needle, "a-b", "7"), " One of the special magic numbers for a-b is: 7.");
  EXPECT_EQ(fill_in(single.question, "a-b", ""),
            "\nWhat is the special magic number for a-b mentioned in the provided text? The special magic "
            "number for "
            "a-b mentioned in the provided text is");
  EXPECT_THAT(several.intro, HasSubstr("Some special magic numbers are hidden within the following text."));
  EXPECT_THAT(fill_in(several.question, "a-b", ""),
              HasSubstr("What are all the special magic numbers for a-b"));
  EXPECT_THAT(needle_task("niah-3").text.needle, HasSubstr("magic uuids for {key}"));
}

TEST(NeedleTaskTest, ValuesAndKeys) {
  Random random(7);
  const std::regex number("[1-9][0-9]{6}"), digits("[0-9]{5}"), key("[a-z]+-[a-z]+");
  const std::regex uuid("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}");
  std::set<std::string> keys;
  bool leading_zero = false;
  for (int i = 0; i < 2000; ++i) {
    EXPECT_TRUE(std::regex_match(draw_value(NeedleValue::number7, random), number));
    const std::string five = draw_value(NeedleValue::digits5, random);
    EXPECT_TRUE(std::regex_match(five, digits)) << five;
    leading_zero = leading_zero || five[0] == '0';
    const std::string u = draw_value(NeedleValue::uuid, random);
    EXPECT_TRUE(std::regex_match(u, uuid)) << u;
    keys.insert(draw_key(random));
    EXPECT_TRUE(std::regex_match(*keys.begin(), key));
  }
  EXPECT_TRUE(leading_zero);
  EXPECT_GT(keys.size(), 1000u);  // of 2304, each as likely
}

TEST(NeedleTaskTest, SimilarKeysShareAWord) {
  Random random(3);
  const std::string key = draw_key(random);
  const size_t dash = key.find('-');
  int first = 0, second = 0;
  for (int i = 0; i < 200; ++i) {
    const std::string similar = draw_similar_key(key, random);
    ASSERT_EQ(std::count(similar.begin(), similar.end(), '-'), 1) << similar;
    first += similar.starts_with(key.substr(0, dash + 1));
    second += similar.ends_with(key.substr(dash));
  }
  EXPECT_GE(first + second, 200);
  EXPECT_GT(first, 60);
  EXPECT_GT(second, 60);
}

TEST(NeedleTaskTest, TextsThatCannotWorkAreRefused) {
  const auto broken = [](auto change) {
    NeedleTask task = needle_task("multi-key");
    change(task);
    return error_of([&] { check_needle_task(task); });
  };
  EXPECT_THAT(broken([](NeedleTask& t) { t.text.needle = "no place"; }), HasSubstr("{value}"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.text.question = "{value}?"; }), HasSubstr("give it away"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.text.intro = "{key}"; }), HasSubstr("give it away"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.text.question = "What?"; }), HasSubstr("{key}"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.text.needle = "It is {value}."; }), HasSubstr("{key}"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.distractors = 100000; }), HasSubstr("--distractors"));
  EXPECT_THAT(broken([](NeedleTask& t) { t.values = 0; }), HasSubstr("--values"));
  EXPECT_EQ(broken([](NeedleTask& t) {
              t.distractors = 0;
              t.text = {"", "It is {value}.", "What?"};
            }),
            "");
}

}  // namespace
}  // namespace rwkvx
