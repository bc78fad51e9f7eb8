// Prompts: exactly as long as asked for, with the needle where it should be and nothing found twice.
#include "evaluation/needle_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>
#include <set>

#include "error_of.h"
#include "evaluation/tokenizers.h"
#include "model/support.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

const NeedleGrid kGrid{.lengths = {700, 1024, 5000}, .depths = {0, 0.3, 0.5, 1}, .repeats = 3, .seed = 1};

std::string essay() {
  std::string text;
  for (int i = 0; i < 150; ++i)
    text += "Sentence " + std::to_string(i) + " says little, and ends. Does the next? ";
  return text;
}

NeedlePlan plan(const std::string& task, const NeedleGrid& grid = kGrid,
                const Tokenizer& tokenizer = *make_byte_tokenizer()) {
  return plan_needles(needle_task(task), grid, Haystack("essay", essay(), grid.lengths.back(), tokenizer),
                      tokenizer);
}

size_t count(const std::string& text, const std::string& what) {
  size_t n = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++n;
  return n;
}

std::vector<size_t> all_of(const NeedlePlan& plan) {
  std::vector<size_t> all(plan.samples.size());
  std::iota(all.begin(), all.end(), size_t{0});
  return all;
}

class EveryTaskTest : public ::testing::TestWithParam<std::string> {};

TEST_P(EveryTaskTest, LengthsAreExactAndEachCellIsThere) {
  for (const auto& tokenizer : {make_byte_tokenizer(), test::small_world_tokenizer()}) {
    const NeedlePlan p = plan(GetParam(), kGrid, *tokenizer);
    std::set<std::tuple<int64_t, double, int64_t>> cells;
    for (const NeedleSample& s : p.samples) {
      EXPECT_EQ(static_cast<int64_t>(p.prompt(s).size()), s.length);
      cells.insert({s.length, s.depth, s.repeat});
    }
    EXPECT_EQ(cells.size(), kGrid.lengths.size() * kGrid.depths.size() * 3);
    EXPECT_EQ(p.samples.size(), cells.size());
  }
}

TEST_P(EveryTaskTest, AnswersStandInTheNeedlesAndNowhereElse) {
  const NeedleTask task = needle_task(GetParam());
  const NeedlePlan p = plan(GetParam());
  const size_t times = count(task.text.needle, "{value}");
  const auto tokenizer = make_byte_tokenizer();
  for (const NeedleSample& s : p.samples) {
    const std::string text = tokenizer->decode(p.prompt(s));
    ASSERT_EQ(static_cast<int64_t>(s.answers.size()), task.values);
    EXPECT_EQ(std::set<std::string>(s.answers.begin(), s.answers.end()).size(), s.answers.size());
    for (const std::string& answer : s.answers) EXPECT_EQ(count(text, answer), times) << answer;
    // The needle with the first answer is where the sample says, and the others are elsewhere.
    const std::string needle = tokenizer->decode(s.needle);
    EXPECT_THAT(needle, HasSubstr(s.answers[0]));
    EXPECT_EQ(text.find(needle), static_cast<size_t>(s.insert_at));
    EXPECT_TRUE(text.ends_with(tokenizer->decode(s.question)));
    EXPECT_TRUE(text.starts_with(task.text.intro));
  }
}

TEST_P(EveryTaskTest, TheSameSeedGivesTheSamePrompts) {
  const auto prompts = [](const NeedlePlan& p) {
    std::vector<std::vector<TokenId>> out;
    for (const NeedleSample& s : p.samples) out.push_back(p.prompt(s));
    return out;
  };
  const auto first = prompts(plan(GetParam()));
  EXPECT_EQ(prompts(plan(GetParam())), first);
  NeedleGrid other = kGrid;
  other.seed = 2;
  const auto second = prompts(plan(GetParam(), other));
  for (size_t i = 0; i < first.size(); ++i) EXPECT_NE(first[i], second[i]);
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), first.size());
}

TEST_P(EveryTaskTest, AGridThatGrowsKeepsItsPrompts) {
  const NeedlePlan large = plan(GetParam());
  NeedleGrid grid = kGrid;
  grid.lengths = {1024};
  grid.depths = {0.5};
  grid.repeats = 2;
  const NeedlePlan small = plan(GetParam(), grid);
  ASSERT_EQ(small.samples.size(), 2u);
  for (const NeedleSample& s : small.samples) {
    const auto same = std::find_if(large.samples.begin(), large.samples.end(), [&](const NeedleSample& l) {
      return l.length == s.length && l.depth == s.depth && l.repeat == s.repeat;
    });
    ASSERT_NE(same, large.samples.end());
    EXPECT_EQ(large.prompt(*same), small.prompt(s));
  }
}

TEST_P(EveryTaskTest, EachRepeatEndsEarlierByTheStep) {
  NeedleGrid stepped = kGrid;
  stepped.end_step = 37;
  const NeedlePlan p = plan(GetParam(), stepped);
  ASSERT_EQ(p.samples.size(), kGrid.lengths.size() * kGrid.depths.size() * 3);
  std::set<std::string> ends;  // the words before the question, where the needle is not among them
  const auto tokenizer = make_byte_tokenizer();
  for (const NeedleSample& s : p.samples) {
    const std::vector<TokenId> prompt = p.prompt(s);
    EXPECT_EQ(static_cast<int64_t>(prompt.size()), s.length - 37 * s.repeat);
    EXPECT_LE(s.insert_at, s.end);
    if (s.depth > 0.3 || s.length < 1024) continue;
    const std::string text = tokenizer->decode(prompt);
    ends.insert(text.substr(text.size() - s.question.size() - 20, 20));
  }
  EXPECT_GE(ends.size(), 6u);  // 2 lengths x 3 repeats; keys of other lengths move some
}

TEST_P(EveryTaskTest, SharingReadsEachTokenOfATrunkOnce) {
  const NeedlePlan p = plan(GetParam());
  int64_t alone = 0;
  for (const NeedleSample& s : p.samples) alone += s.length;
  const auto all = all_of(p);
  const int64_t shared = needle_cost(p, all);
  EXPECT_LT(shared, alone);
  // Counted the long way: what every group of prompts with the same beginning adds.
  std::set<std::vector<TokenId>> nodes;  // all prefixes, as bytes read once
  int64_t distinct = 0;
  NeedleGrid tiny = kGrid;
  tiny.lengths = {700};
  tiny.repeats = 1;
  const NeedlePlan few = plan(GetParam(), tiny);
  for (const NeedleSample& s : few.samples) {
    std::vector<TokenId> prompt = few.prompt(s);
    while (!prompt.empty() && nodes.insert(prompt).second) {
      ++distinct;
      prompt.pop_back();
    }
  }
  // Needles at different depths begin alike, and may go on as the haystack does: a tree shares those bytes
  // too.
  EXPECT_GE(needle_cost(few, all_of(few)), distinct);
  EXPECT_LE(needle_cost(few, all_of(few)), distinct + 40 * 4);
  for (const NeedleSample& s : p.samples) {
    const size_t one[] = {static_cast<size_t>(&s - p.samples.data())};
    EXPECT_EQ(needle_cost(p, one), s.length);
  }
}

INSTANTIATE_TEST_SUITE_P(Tasks, EveryTaskTest, ::testing::ValuesIn(needle_task_names()),
                         [](const auto& test) {
                           return std::regex_replace(test.param, std::regex("-"), "_");
                         });

TEST(NeedlePlanTest, DepthsAreWhereTheyShouldBe) {
  const NeedlePlan bare = plan("passkey-bare");
  for (const NeedleSample& s : bare.samples) {
    const auto hay = s.length - static_cast<int64_t>(s.needle.size() + s.question.size());
    EXPECT_EQ(s.insert_at, static_cast<int64_t>(s.depth * static_cast<double>(hay)));
  }
  const auto tokenizer = make_byte_tokenizer();
  const NeedlePlan p = plan("niah-2");
  for (const NeedleSample& s : p.samples) {
    const auto intro = static_cast<int64_t>(needle_task("niah-2").text.intro.size());
    const int64_t hay = s.end - intro, at = s.insert_at - intro;
    const auto asked = static_cast<int64_t>(s.depth * static_cast<double>(hay));
    EXPECT_LE(at, asked);
    EXPECT_GT(at, asked - 60);  // the longest sentence of the essay
    if (s.depth == 0) {
      EXPECT_EQ(at, 0);
    } else if (s.depth == 1) {
      EXPECT_EQ(at, hay);
    } else {
      const std::string before = tokenizer->decode(p.prompt(s)).substr(0, static_cast<size_t>(s.insert_at));
      EXPECT_TRUE(before.ends_with(".") || before.ends_with("?"));
    }
  }
}

TEST(NeedlePlanTest, DistractorsAreDistinctAndSharedByAllDepths) {
  NeedleTask task = needle_task("multi-key");
  task.distractors = 10;
  const auto tokenizer = make_byte_tokenizer();
  const Haystack haystack("essay", essay(), 5000, *tokenizer);
  NeedleGrid grid = kGrid;
  grid.lengths = {1500, 2000, 5000};
  const NeedlePlan p = plan_needles(task, grid, haystack, *tokenizer);
  EXPECT_EQ(p.trunks.size(), 9u);  // for each length and repeat
  const std::regex needle("magic numbers for ([a-z-]+) is: ([0-9]+)\\.");
  for (const NeedleSample& s : p.samples) {
    const std::string text = tokenizer->decode(p.prompt(s));
    std::set<std::string> keys, values;
    for (std::sregex_iterator i(text.begin(), text.end(), needle), end; i != end; ++i) {
      keys.insert((*i)[1]);
      values.insert((*i)[2]);
    }
    EXPECT_EQ(keys.size(), 11u);
    EXPECT_EQ(values.size(), 11u);
    // The key of the needle is the one that is asked for.
    const std::string question = tokenizer->decode(s.question), own = tokenizer->decode(s.needle);
    std::smatch match;
    ASSERT_TRUE(std::regex_search(own, match, needle));
    EXPECT_EQ(count(question, match[1]), 2u);
  }
}

TEST(NeedlePlanTest, ValuesThatTheHaystackHoldsAreNotDrawn) {
  // All five-digit numbers but one.
  std::string text;
  for (int i = 0; i < 100000; ++i) {
    if (i != 31415) text += fmt::format("{:05}.", i);
  }
  NeedleGrid grid{.lengths = {400}, .depths = {0.5}, .repeats = 1, .seed = 0};
  const auto tokenizer = make_byte_tokenizer();
  // A thousand draws do not find it; what they must not do is to take another.
  EXPECT_THAT(error_of([&] {
                plan_needles(needle_task("passkey"), grid, Haystack("numbers", text, 400, *tokenizer),
                             *tokenizer);
              }),
              HasSubstr("numbers: no key or value can be drawn"));
}

TEST(NeedlePlanTest, LengthsBelowTheTasksOwnWordsAreRefused) {
  NeedleGrid grid = kGrid;
  const NeedleSample any = plan("passkey").samples[0];
  const auto least = static_cast<int64_t>(needle_task("passkey").text.intro.size() + any.needle.size() +
                                          any.question.size());
  grid.lengths = {least - 1, 2000};
  EXPECT_THAT(error_of([&] { plan("passkey", grid); }), HasSubstr(fmt::format("at least {} tokens", least)));
  grid.lengths = {least};
  for (const NeedleSample& s : plan("passkey", grid).samples) EXPECT_EQ(s.length, least);
}

TEST(NeedlePlanTest, MakesThePromptsThatThePrototypeWasGiven) {
  std::ifstream file(test::data("rwkvx-proto-1.3m/passkeys.jsonl"));
  const auto tokenizer = make_byte_tokenizer();
  int compared = 0;
  for (std::string line; std::getline(file, line);) {
    const nlohmann::json json = nlohmann::json::parse(line);
    if (json.at("haystack") != "noise") continue;
    const auto length = json.at("length").get<int64_t>();
    const double depth = std::round(json.at("depth").get<double>() * 12) / 12;  // the file rounds
    const NeedleGrid grid{.lengths = {length}, .depths = {depth}, .repeats = 1, .seed = 0};
    const NeedlePlan p = plan_needles(needle_task("passkey-bare"), grid,
                                      Haystack("noise", noise_text(" "), length, *tokenizer), *tokenizer);
    const std::string mine = tokenizer->decode(p.prompt(p.samples.at(0)));
    EXPECT_EQ(
        std::regex_replace(mine, std::regex(p.samples[0].answers[0]), json.at("answer").get<std::string>()),
        json.at("prompt").get<std::string>());
    ++compared;
  }
  EXPECT_GE(compared, 8);
}

}  // namespace
}  // namespace rwkvx
