#include "training/curriculum.h"

#include <gmock/gmock.h>

#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

TEST(Curriculum, ContextsByStepsKeepTheTokensOfAStep) {
  TrainConfig config;
  config.context = 1024;
  config.batch = 8;
  config.lr = 1e-3;
  const auto phases = phases_of(config, parse_curriculum("256:120,512:350,1024:1,8192"));
  ASSERT_EQ(phases.size(), 4u);
  const int64_t begins[] = {0, 120, 470, 471}, batches[] = {32, 16, 8, 1};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(phases[i].begin, begins[i]);
    EXPECT_EQ(phases[i].batch, batches[i]);
    EXPECT_EQ(phases[i].lr, 1e-3);
    EXPECT_EQ(phase_at(phases, begins[i]), i);
    if (i > 0) {
      EXPECT_EQ(phase_at(phases, begins[i] - 1), i - 1);
    }
  }
  EXPECT_EQ(phase_at(phases, int64_t{1} << 40), 3u);
  EXPECT_THAT(error_of([&] { phases_of(config, parse_curriculum("256:1,8193")); }), HasSubstr("--batch"));
}

TEST(Curriculum, PhasesSayWhatIsTheirs) {
  TrainConfig config;
  config.context = 100;
  config.batch = 8;
  config.lr = 1e-3;
  MixturePhase own, rest;
  own.steps = 5;
  own.context = 30;
  own.batch = 3;
  own.lr = 2e-3;
  const auto phases = phases_of(config, {own, rest});
  EXPECT_EQ(phases[0].batch, 3);
  EXPECT_EQ(phases[0].lr, 2e-3);
  EXPECT_EQ(phases[1].context, 100);
  EXPECT_EQ(phases[1].batch, 8);
  EXPECT_EQ(tokens_before(phases, 0), 0);
  EXPECT_EQ(tokens_before(phases, 3), 3 * 30 * 3);
  EXPECT_EQ(tokens_before(phases, 5), 5 * 30 * 3);
  EXPECT_EQ(tokens_before(phases, 7), 5 * 30 * 3 + 2 * 100 * 8);
  EXPECT_EQ(phases_of(config, {}).size(), 1u);
}

TEST(Curriculum, TextsThatAreNone) {
  for (const char* text : {"", "256:", "256:1,", ",256", "256,512", "0:3,4", "256:0,4", "256:1;512", "x",
                           "-1", "256:1,512:2,1024x", "99999999999999999999", "33554432", "256:1:2"}) {
    EXPECT_THAT(error_of([&] { parse_curriculum(text); }), HasSubstr("--curriculum")) << text;
  }
  EXPECT_EQ(parse_curriculum("64").size(), 1u);
  EXPECT_EQ(parse_curriculum("64:7").at(0).steps, 7);
}

}  // namespace
}  // namespace rwkvx
