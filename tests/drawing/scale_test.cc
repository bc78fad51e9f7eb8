#include "drawing/scale.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace rwkvx {
namespace {

using testing::ElementsAre;

std::vector<std::string> labels(const Scale& scale, int most) {
  std::vector<std::string> out;
  for (const Scale::Tick& tick : scale.ticks(most)) out.push_back(tick.label);
  return out;
}

TEST(ScaleTest, ShortNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(-0.0), "0");
  EXPECT_EQ(short_number(950), "950");
  EXPECT_EQ(short_number(1500), "1.5K");
  EXPECT_EQ(short_number(2e6), "2M");
  EXPECT_EQ(short_number(-3e9), "-3G");
  EXPECT_EQ(short_number(65536, true), "64K");
  EXPECT_EQ(short_number(1 << 20, true), "1M");
  EXPECT_EQ(short_number(0.05), "0.05");
}

TEST(ScaleTest, LinearLimitsAndTicksAreRound) {
  const Scale scale(ScaleKind::linear, 0.13, 3.9);
  EXPECT_EQ(scale.low(), 0);
  EXPECT_EQ(scale.high(), 4);
  EXPECT_THAT(labels(scale, 5), ElementsAre("0", "1", "2", "3", "4"));
  EXPECT_EQ(scale.place(1), 0.25);
  EXPECT_THAT(labels(Scale(ScaleKind::linear, 2.31, 2.44), 5), ElementsAre("2.30", "2.35", "2.40", "2.45"));
}

TEST(ScaleTest, Logarithmic) {
  const Scale ten(ScaleKind::log10, 3, 900);
  EXPECT_EQ(ten.low(), 2);
  EXPECT_NEAR(ten.high(), 1000, 1e-9);
  EXPECT_THAT(labels(ten, 12), ElementsAre("2", "5", "10", "20", "50", "100", "200", "500", "1K"));
  EXPECT_THAT(labels(ten, 5), ElementsAre("10", "100", "1K"));
  EXPECT_TRUE(std::isnan(ten.place(0)));
  EXPECT_TRUE(std::isnan(ten.place(-1)));

  const Scale two(ScaleKind::log2, 1024, 65536, true);
  EXPECT_THAT(labels(two, 10), ElementsAre("1K", "2K", "4K", "8K", "16K", "32K", "64K"));
  EXPECT_THAT(labels(two, 4), ElementsAre("1K", "4K", "16K", "64K"));
  EXPECT_NEAR(two.place(8192), 0.5, 1e-12);
}

TEST(ScaleTest, RangesThatCannotBeDrawnBecomeOnesThatCan) {
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               infinity = std::numeric_limits<double>::infinity();
  for (const ScaleKind kind : {ScaleKind::linear, ScaleKind::log10, ScaleKind::log2}) {
    for (const auto& [low, high] : std::initializer_list<std::pair<double, double>>{
             {0, 0}, {5, 5}, {-2, -2}, {-3, 8}, {8, -3}, {infinity, -infinity}, {nan, 1}, {0, infinity}}) {
      const Scale scale(kind, low, high);
      EXPECT_TRUE(std::isfinite(scale.low()) && std::isfinite(scale.high()) && scale.low() < scale.high());
      const size_t ticks = scale.ticks(8).size();
      EXPECT_TRUE(ticks >= 1 && ticks <= 24) << ticks;
    }
  }
}

}  // namespace
}  // namespace rwkvx
