// Sessions: pending tokens, segments, interruption, forks, and conversations saved and restored.
#include "runtime/session.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <fstream>

#include "base/error.h"
#include "model/state_file.h"
#include "model/support.h"
#include "model/tensor_file.h"

namespace rwkvx {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct Stop {};

class SessionTest : public testing::Test {
 protected:
  SessionTest() {
    test::small_model(2, 1).write(folder_ / "model");
    model_ = test::open_model(folder_ / "model", "cpu", Precision::f32, CheckpointOptions{16, 2});
  }

  /// The last logits of the tokens in one forward pass.
  std::vector<float> expected(std::span<const int32_t> tokens) const {
    State state = model_->new_state();
    const std::vector<float> all = test::run(*model_, state, tokens);
    return {all.end() - 256, all.end()};
  }
  static void expect_same(std::span<const float> got, std::span<const float> wanted) {
    EXPECT_LE(test::distance(got, wanted).max, 2e-5);
  }
  static std::vector<int32_t> tokens(size_t count, uint64_t seed = 1) {
    return test::random_tokens(count, 256, seed);
  }

  const test::TemporaryFolder folder_;
  std::shared_ptr<const Model> model_;
};

TEST_F(SessionTest, LogitsFollowWhatWasAppended) {
  Session session(model_);
  const auto t = tokens(40);
  session.append(std::span(t).first(30));
  EXPECT_EQ(session.length(), 30);
  EXPECT_EQ(session.state().position(), 0) << "consumed only when logits are asked for";
  expect_same(session.logits(), expected(std::span(t).first(30)));
  EXPECT_EQ(session.state().position(), 30);
  expect_same(session.logits(), expected(std::span(t).first(30)));  // again, at no cost
  for (size_t i = 30; i < 35; ++i) session.append(t[i]);
  EXPECT_EQ(session.length(), 35);
  expect_same(session.logits(), expected(std::span(t).first(35)));
  session.append(std::span(t).subspan(35));
  expect_same(session.logits(), expected(t));
}

TEST_F(SessionTest, NothingToContinueFrom) {
  Session session(model_);
  EXPECT_THAT([&] { session.logits(); }, ThrowsMessage<Error>(HasSubstr("--prompt")));
  session.append(std::span<const int32_t>());
  EXPECT_THAT([&] { session.logits(); }, ThrowsMessage<Error>(HasSubstr("--prompt")));
  session.append(7);
  EXPECT_EQ(session.logits().size(), 256u);
}

TEST_F(SessionTest, TokensOutsideTheVocabularyAreNotAppended) {
  Session session(model_);
  const auto t = tokens(10);
  session.append(t);
  for (const int32_t bad : {-1, 256, 1 << 30}) {
    const std::vector<int32_t> mixed{1, 2, bad};
    EXPECT_THAT([&] { session.append(mixed); },
                ThrowsMessage<Error>(
                    AllOf(HasSubstr(std::to_string(bad)), HasSubstr("position 12"), HasSubstr("256"))));
  }
  EXPECT_EQ(session.length(), 10);
  expect_same(session.logits(), expected(t));
}

TEST_F(SessionTest, Reset) {
  Session session(model_);
  session.append(tokens(20));
  session.logits();
  session.append(3);
  session.reset();
  EXPECT_EQ(session.length(), 0);
  EXPECT_THROW(session.logits(), Error);
  const auto t = tokens(9, 2);
  session.append(t);
  expect_same(session.logits(), expected(t));
}

TEST_F(SessionTest, LongPromptsPassInSegmentsWithProgress) {
  Session session(model_);
  const auto t = tokens(Session(model_).segment_rows() + 100);
  session.append(t);
  std::vector<std::pair<uint64_t, uint64_t>> reports;
  const auto logits =
      session.logits([&](uint64_t done, uint64_t total) { reports.emplace_back(done, total); });
  expect_same(logits, expected(t));
  ASSERT_GE(reports.size(), 3u) << "at least two segments and the end";
  EXPECT_EQ(reports.front(), std::pair(uint64_t{0}, uint64_t{t.size()}));
  EXPECT_EQ(reports.back(), std::pair(uint64_t{t.size()}, uint64_t{t.size()}));
  for (size_t i = 1; i < reports.size(); ++i) EXPECT_GT(reports[i].first, reports[i - 1].first);
}

TEST_F(SessionTest, StoppedPromptsStayUsable) {
  const auto t = tokens(Session(model_).segment_rows() + 100);
  const std::vector<float> wanted = expected(t);
  for (int stop_at = 0; stop_at < 3; ++stop_at) {
    SCOPED_TRACE(stop_at);
    Session session(model_);
    session.append(t);
    int calls = 0;
    EXPECT_THROW(session.logits([&](uint64_t, uint64_t) {
      if (calls++ == stop_at) throw Stop();
    }),
                 Stop);
    EXPECT_EQ(session.length(), static_cast<int64_t>(t.size())) << "what was not consumed is still pending";
    if (stop_at == 0) {
      EXPECT_EQ(session.state().position(), 0);
    }
    if (stop_at == 1) {
      EXPECT_GT(session.state().position(), 0);
      EXPECT_LT(session.state().position(), session.length());
    }
    const Session fork = session.fork();
    session.save(folder_ / "stopped", "{}");
    Session restored(model_);
    restored.load(folder_ / "stopped");
    EXPECT_EQ(restored.length(), session.length());
    EXPECT_EQ(restored.state().position(), session.state().position());
    expect_same(session.logits(), wanted);
    expect_same(restored.logits(), wanted);
    expect_same(fork.fork().logits(), wanted);
  }
}

TEST_F(SessionTest, SettleLeavesOneToken) {
  Session session(model_);
  const auto t = tokens(30);
  session.append(t);
  session.settle();
  EXPECT_EQ(session.state().position(), 29);
  EXPECT_EQ(session.length(), 30);
  expect_same(session.logits(), expected(t));
  session.settle();
  expect_same(session.logits(), expected(t));
  Session empty(model_);
  empty.settle();
  EXPECT_EQ(empty.length(), 0);
}

TEST_F(SessionTest, ForksGoTheirOwnWay) {
  Session session(model_);
  const auto t = tokens(40);
  session.append(std::span(t).first(20));
  session.logits();
  session.append(t[20]);  // pending
  Session fork = session.fork();
  EXPECT_EQ(fork.length(), 21);
  auto ours = std::vector(t.begin(), t.begin() + 21), theirs = ours;
  for (size_t i = 21; i < 40; ++i) {
    session.append(t[i]);
    ours.push_back(t[i]);
    fork.append(255 - t[i]);
    theirs.push_back(255 - t[i]);
    if (i % 6 == 0) {
      fork.logits();
      session.logits();
    }
  }
  expect_same(session.logits(), expected(ours));
  expect_same(fork.logits(), expected(theirs));
  fork.reset();
  expect_same(session.logits(), expected(ours));
}

TEST_F(SessionTest, SavedConversationsGoOn) {
  const auto t = tokens(50);
  const std::vector<float> wanted = expected(t);
  for (const bool pending : {false, true}) {
    for (const size_t cut : {1u, 16u, 33u}) {
      SCOPED_TRACE(fmt::format("{} tokens, {}", cut, pending ? "pending" : "consumed"));
      Session session(model_);
      session.append(std::span(t).first(cut));
      std::vector<float> before;
      if (!pending) before.assign(session.logits().begin(), session.logits().end());
      session.save(folder_ / "saved", R"({"who": "me", "text": "ä\n"})");
      EXPECT_EQ(session.state().position(), pending ? 0 : static_cast<int64_t>(cut))
          << "saving computes nothing";

      Session restored(model_);
      restored.append(tokens(5, 9));  // replaced
      EXPECT_EQ(restored.load(folder_ / "saved"), R"({"who": "me", "text": "ä\n"})");
      EXPECT_EQ(restored.length(), static_cast<int64_t>(cut));
      if (!pending) {
        EXPECT_TRUE(test::distance(restored.logits(), before).bitwise) << "saved with the state";
      }
      restored.append(std::span(t).subspan(cut));
      expect_same(restored.logits(), wanted);
    }
  }
}

TEST_F(SessionTest, EmptySessionsAreSavedToo) {
  Session session(model_);
  session.save(folder_ / "saved", "");
  Session restored(model_);
  restored.append(5);
  EXPECT_EQ(restored.load(folder_ / "saved"), "");
  EXPECT_EQ(restored.length(), 0);
  EXPECT_THROW(restored.logits(), Error);
}

TEST_F(SessionTest, WhatCannotBeLoadedLeavesTheSessionAlone) {
  Session session(model_);
  const auto t = tokens(12);
  session.append(t);
  const auto expect_refused = [&](const Path& path, const std::string& part) {
    SCOPED_TRACE(part);
    EXPECT_THAT([&] { session.load(path); },
                ThrowsMessage<Error>(AllOf(HasSubstr(path.string()), HasSubstr(part))));
    EXPECT_EQ(session.length(), 12);
  };
  expect_refused(folder_ / "none", "cannot open");
  expect_refused(folder_ / "model", "is not a state file");

  const Path path = folder_ / "saved";
  const State state = model_->new_state();
  const auto with = [&](std::string_view data) { save_state(path, state, model_->fingerprint(), data); };
  for (const char* data :
       {"", "null", "{}", R"({"pending": 3, "logits": "", "extra": ""})",
        R"({"pending": [1], "logits": 3, "extra": ""})", R"({"pending": [1], "logits": ""})"}) {
    with(data);
    expect_refused(path, "damaged");
  }
  with(R"({"pending": [1], "logits": "00000000", "extra": ""})");  // one logit
  expect_refused(path, "do not fit");
  with(R"({"pending": [1, 256], "logits": "", "extra": ""})");
  expect_refused(path, "256");
  with(R"({"pending": [1, 4294967297], "logits": "", "extra": ""})");
  expect_refused(path, "4294967297");

  test::small_model(1, 1).write(folder_ / "other");
  Session other(test::open_model(folder_ / "other", "cpu", Precision::f32, CheckpointOptions{16, 2}));
  other.append(4);
  other.save(path, "");
  expect_refused(path, "another model");
  expect_same(session.logits(), expected(t));
}

TEST_F(SessionTest, FailedSavesLeaveNothingBehind) {
  Session session(model_);
  session.append(tokens(12));
  EXPECT_THROW(session.save(folder_ / "no/folder", "{}"), Error);
  EXPECT_THAT(folder_.files(), ElementsAre("model"));
  expect_same(session.logits(), expected(tokens(12)));
}

TEST_F(SessionTest, ManySessionsOfOneModelTakeTurns) {
  Session a(model_), b(model_);
  const auto ta = tokens(25, 3), tb = tokens(25, 4);
  for (size_t i = 0; i < 25; ++i) {
    a.append(ta[i]);
    b.append(tb[i]);
    a.logits();
    b.logits();
  }
  expect_same(a.logits(), expected(ta));
  expect_same(b.logits(), expected(tb));
}

}  // namespace
}  // namespace rwkvx
