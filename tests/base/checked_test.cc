#include "base/checked.h"

#include <gtest/gtest.h>

#include <limits>

namespace rwkvx {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(Checked, Multiplies) {
  EXPECT_EQ(checked_mul(6, 7), 42u);
  EXPECT_EQ(checked_mul(0, kMax), 0u);
  EXPECT_EQ(checked_mul(kMax, 1), kMax);
  EXPECT_EQ(checked_mul(uint64_t{1} << 32, (uint64_t{1} << 32) - 1), kMax - (uint64_t{1} << 32) + 1);
  EXPECT_FALSE(checked_mul(uint64_t{1} << 32, uint64_t{1} << 32));
  EXPECT_FALSE(checked_mul(kMax, 2));
}

TEST(Checked, Adds) {
  EXPECT_EQ(checked_add(kMax - 1, 1), kMax);
  EXPECT_FALSE(checked_add(kMax, 1));
  EXPECT_FALSE(checked_add(kMax, kMax));
}

TEST(Checked, Bounds) {
  EXPECT_TRUE(in_bounds(0, 0, 0));
  EXPECT_TRUE(in_bounds(10, 0, 10));
  EXPECT_TRUE(in_bounds(3, 7, 10));
  EXPECT_FALSE(in_bounds(3, 8, 10));
  EXPECT_FALSE(in_bounds(11, 0, 10));
  EXPECT_FALSE(in_bounds(8, kMax - 4, 10));  // offset + size wraps around to 3
  EXPECT_FALSE(in_bounds(kMax, 1, 10));
}

}  // namespace
}  // namespace rwkvx
