#include "evaluation/grid.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(GridTest, Counts) {
  EXPECT_EQ(parse_count("1", "--x"), 1);
  EXPECT_EQ(parse_count("4096", "--x"), 4096);
  EXPECT_EQ(parse_count("64k", "--x"), 65536);
  EXPECT_EQ(parse_count("1M", "--x"), 1048576);
  EXPECT_EQ(parse_count("1.5k", "--x"), 1536);
  for (const char* bad : {"", "0", "0k", "-1", "k", "1kk", "1g", "0.3", "1.0001k", "1e3", "nan", "inf", " 1",
                          "1 ", "99999999m", "0x10"}) {
    EXPECT_THAT(error_of([&] { parse_count(bad, "--x"); }), HasSubstr("--x")) << bad;
    EXPECT_THROW(parse_count(bad, "--x"), UsageError) << bad;
  }
}

TEST(GridTest, Lengths) {
  EXPECT_THAT(parse_lengths("1k..8k"), ElementsAre(1024, 2048, 4096, 8192));
  EXPECT_THAT(parse_lengths("1000..3000"), ElementsAre(1000, 2000, 3000));
  EXPECT_THAT(parse_lengths("4k"), ElementsAre(4096));
  EXPECT_THAT(parse_lengths("5..5"), ElementsAre(5));
  EXPECT_THAT(parse_lengths("8k,1k..2k,100,1k"), ElementsAre(100, 1024, 2048, 8192));
  for (const char* bad : {"", "1k,", "8k..1k", "1k..", "..8k", "1k...8k", "0..8", "1k-8k"}) {
    EXPECT_THROW(parse_lengths(bad), UsageError) << bad;
  }
}

TEST(GridTest, Depths) {
  EXPECT_THAT(parse_depths("0,25,50"), ElementsAre(0, 0.25, 0.5));
  EXPECT_THAT(parse_depths("100%,12.5%,12.5"), ElementsAre(0.125, 1));
  EXPECT_THAT(parse_depths("50%"), ElementsAre(0.5));
  EXPECT_THAT(parse_depths("5"), ElementsAre(0, 0.25, 0.5, 0.75, 1));
  EXPECT_THAT(parse_depths("1"), ElementsAre(0.5));
  EXPECT_EQ(parse_depths("11").size(), 11u);
  for (const char* bad : {"", "0", "-1", "2.5", "101%", "-1%", "0,,5", "0,x", "1001", "nan,1", "%"}) {
    EXPECT_THROW(parse_depths(bad), UsageError) << bad;
  }
}

TEST(GridTest, Labels) {
  EXPECT_EQ(length_label(512), "512");
  EXPECT_EQ(length_label(1024), "1K");
  EXPECT_EQ(length_label(1536), "1.5K");
  EXPECT_EQ(length_label(1000000), "1000000");
  EXPECT_EQ(length_label(1 << 20), "1M");
  EXPECT_EQ(depth_label(0), "0%");
  EXPECT_EQ(depth_label(1.0 / 12), "8.333%");
  EXPECT_EQ(depth_label(1), "100%");
}

}  // namespace
}  // namespace rwkvx
