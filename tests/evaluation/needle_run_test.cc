// What prompts share is read once, and that changes nothing.
#include "evaluation/needle_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "model/support.h"
#include "runtime/session.h"

namespace rwkvx {
namespace {

using Answers = std::vector<std::string>;

TEST(ScoreTest, OneAnswerIsMatchedFromTheFirstWord) {
  EXPECT_EQ(score_answer("12345", Answers{"12345"}), 1);
  EXPECT_EQ(score_answer(" 12345. Remember", Answers{"12345"}), 1);
  EXPECT_EQ(score_answer(": \"12345\"", Answers{"12345"}), 1);
  EXPECT_EQ(score_answer(" 1234", Answers{"12345"}), 0);
  EXPECT_EQ(score_answer("It is 12345", Answers{"12345"}), 0);
  EXPECT_EQ(score_answer("02345", Answers{"12345"}), 0);
  EXPECT_EQ(score_answer("", Answers{"12345"}), 0);
  EXPECT_EQ(score_answer("...", Answers{"12345"}), 0);
}

TEST(ScoreTest, OfSeveralTheShareCounts) {
  const Answers answers{"11", "22", "33", "44"};
  EXPECT_EQ(score_answer(" 22, 11, and 44.", answers), 0.75);
  EXPECT_EQ(score_answer("44 33 22 11", answers), 1);
  EXPECT_EQ(score_answer("", answers), 0);
  EXPECT_EQ(score_answer("11 11 11", answers), 0.25);
}

class NeedleRunTest : public ::testing::Test {
 protected:
  struct Stop {};

  static std::shared_ptr<const Model> model() {
    static const auto model = test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", Precision::bf16);
    return model;
  }
  /// Lengths that share needles, depths that share their haystack.
  NeedlePlan plan(const std::string& task) const {
    NeedleTask t = needle_task(task);
    const NeedleGrid grid{.lengths = {600, 1500}, .depths = {0, 0.4, 1}, .repeats = 2, .seed = 3};
    return plan_needles(t, grid, Haystack("noise", noise_text(t.noise_separator), 1500, *tokenizer_),
                        *tokenizer_);
  }
  std::vector<NeedleResult> run(const NeedlePlan& p, const std::vector<size_t>& samples,
                                const Progress& progress = {}) const {
    std::vector<NeedleResult> out;
    run_needles(
        model(), *tokenizer_, p, samples, [&](const NeedleResult& r) { out.push_back(r); }, progress);
    return out;
  }
  static std::vector<size_t> all(const NeedlePlan& p) {
    std::vector<size_t> out(p.samples.size());
    std::iota(out.begin(), out.end(), size_t{0});
    return out;
  }
  const std::shared_ptr<const Tokenizer> tokenizer_ = make_byte_tokenizer();
};

TEST_F(NeedleRunTest, ThePrototypeFindsEveryPassKey) {
  const NeedlePlan p = plan("passkey");
  const auto results = run(p, all(p));
  ASSERT_EQ(results.size(), 12u);
  std::vector<size_t> samples;
  for (const NeedleResult& r : results) {
    samples.push_back(r.sample);
    EXPECT_EQ(r.score, 1) << r.predicted;
    EXPECT_EQ(r.predicted, " " + p.samples[r.sample].answers[0]);
  }
  std::sort(samples.begin(), samples.end());
  EXPECT_EQ(samples, all(p));
}

/// The model that comes with rwkvx tells the key that is asked for from sixteen others.
TEST_F(NeedleRunTest, TheMiniatureTellsKeysApart) {
  const auto miniature = test::open_model(test::models("rwkvx-miniature.gguf"), "cpu", Precision::bf16);
  NeedleTask task = needle_task("multi-key");
  task.distractors = 16;
  const NeedleGrid grid{.lengths = {3000}, .depths = {0, 0.5, 1}, .repeats = 4, .seed = 5};
  const NeedlePlan p = plan_needles(
      task, grid, Haystack("noise", noise_text(task.noise_separator), 3000, *tokenizer_), *tokenizer_);
  size_t answered = 0;
  double right = 0;
  run_needles(miniature, *tokenizer_, p, all(p),
              [&](const NeedleResult& r) {
                ++answered;
                right += r.score;
              },
              {});
  EXPECT_EQ(answered, 12u);
  EXPECT_GE(right, 10) << "it finds 19 of 20, and guessing 1 of 17";
}

TEST_F(NeedleRunTest, SharedPromptsAreAnsweredAsEachAlone) {
  // Where several needles are in the text the prototype errs: what it says must still be the same.
  const NeedlePlan p = plan("multi-key");
  for (const NeedleResult& r : run(p, all(p))) {
    Session session(model());
    session.append(p.prompt(p.samples[r.sample]));
    std::string alone;
    while (alone.size() < r.predicted.size()) {
      const auto logits = session.logits();
      alone += static_cast<char>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      session.append(static_cast<unsigned char>(alone.back()));
    }
    EXPECT_EQ(r.predicted, alone);
    EXPECT_GE(r.predicted.size(), p.samples[r.sample].answers[0].size());
  }
}

TEST_F(NeedleRunTest, ProgressRisesToTheCost) {
  const NeedlePlan p = plan("multi-value");
  const std::vector<size_t> some{1, 5, 9};
  uint64_t last = 0, total = 0;
  run(p, some, [&](uint64_t done, uint64_t of) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, of);
    last = done;
    total = of;
  });
  EXPECT_EQ(total, static_cast<uint64_t>(needle_cost(p, some)));
  EXPECT_GT(last + 2, total);  // the last token of all is read with the first of the answer
}

TEST_F(NeedleRunTest, WhatWasFinishedBeforeAStopIsKept) {
  const NeedlePlan p = plan("passkey");
  std::vector<size_t> finished;
  EXPECT_THROW(
      run_needles(
          model(), *tokenizer_, p, all(p), [&](const NeedleResult& r) { finished.push_back(r.sample); },
          [&](uint64_t, uint64_t) {
            if (finished.size() == 3) throw Stop();
          }),
      Stop);
  ASSERT_EQ(finished.size(), 3u);
  std::vector<size_t> rest;
  for (const size_t i : all(p)) {
    if (std::find(finished.begin(), finished.end(), i) == finished.end()) rest.push_back(i);
  }
  EXPECT_EQ(run(p, rest).size(), 9u);
  EXPECT_TRUE(run(p, {}).empty());
}

}  // namespace
}  // namespace rwkvx
