#include "training/schedule.h"

#include <gtest/gtest.h>

namespace rwkvx {
namespace {

TEST(Schedule, Ends) {
  for (const Decay decay : {Decay::cosine, Decay::linear}) {
    const Schedule s{decay, 1e-3, 1e-4, 10, 1000};
    EXPECT_DOUBLE_EQ(learning_rate(s, 0), 1e-5);
    EXPECT_DOUBLE_EQ(learning_rate(s, 5), 1e-3 * (0.01 + 0.99 * 0.5));
    EXPECT_DOUBLE_EQ(learning_rate(s, 10), 1e-3);
    EXPECT_DOUBLE_EQ(learning_rate(s, 999), 1e-4);
    EXPECT_DOUBLE_EQ(learning_rate(s, 5000), 1e-4);
    for (int64_t step = 11; step < 1000; ++step)
      EXPECT_LT(learning_rate(s, step), learning_rate(s, step - 1));
  }
  EXPECT_DOUBLE_EQ(learning_rate({Decay::constant, 2.0, 1.0, 0, 10}, 0), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate({Decay::constant, 2.0, 1.0, 0, 10}, 9), 2.0);
}

TEST(Schedule, Halfway) {
  // 101 steps without warm-up: step 50 is the middle, 25 a quarter.
  EXPECT_DOUBLE_EQ(learning_rate({Decay::cosine, 3.0, 1.0, 0, 101}, 50), 2.0);
  EXPECT_DOUBLE_EQ(learning_rate({Decay::cosine, 3.0, 1.0, 0, 101}, 25), 2.0 + 0.70710678118654752);
  EXPECT_DOUBLE_EQ(learning_rate({Decay::linear, 3.0, 1.0, 0, 101}, 25), 2.5);
}

TEST(Schedule, RunsShorterThanTheirWarmUp) {
  const Schedule s{Decay::cosine, 1.0, 0.1, 100, 10};
  EXPECT_DOUBLE_EQ(learning_rate(s, 9), 0.01 + 0.99 * 0.09);
  EXPECT_DOUBLE_EQ(learning_rate({Decay::linear, 1.0, 0.1, 0, 1}, 0), 1.0);
}

}  // namespace
}  // namespace rwkvx
