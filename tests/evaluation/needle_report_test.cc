#include "evaluation/needle_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<NeedleRecord> records() {
  const auto record = [](int64_t length, double depth, int64_t repeat, double score) {
    return NeedleRecord{length, depth, repeat, 7, {"12345"}, " 1234\"5", score};
  };
  return {record(2048, 1.0 / 3, 0, 1), record(1024, 0, 0, 1), record(1024, 0, 1, 0), record(1024, 0, 2, 0.25),
          record(1024, 0.333333, 0, 0)};  // the depth as it comes back from a file
}

TEST(NeedleReportTest, RecordsComeBackFromJson) {
  const NeedleRecord before = records()[0];
  const NeedleRecord after = needle_record(nlohmann::ordered_json::parse(to_json(before).dump()), "here");
  EXPECT_EQ(to_json(after), to_json(before));
  NeedleSample sample;
  sample.length = 2048;
  sample.depth = 1.0 / 3;
  sample.insert_at = 7;
  sample.answers = {"12345"};
  EXPECT_TRUE(after.same_sample(sample));
  for (const auto& change : std::vector<std::function<void(NeedleSample&)>>{
           [](NeedleSample& s) { s.length = 1; }, [](NeedleSample& s) { s.depth = 0.3334; },
           [](NeedleSample& s) { s.repeat = 1; }, [](NeedleSample& s) { s.insert_at = 8; },
           [](NeedleSample& s) { s.answers = {"1"}; }}) {
    NeedleSample other = sample;
    change(other);
    EXPECT_FALSE(after.same_sample(other));
  }
  EXPECT_THAT(error_of([] {
                needle_record(nlohmann::ordered_json{{"length", "x"}}, "some/file");
              }),
              HasSubstr("some/file"));
}

TEST(NeedleReportTest, TableHoldsMeans) {
  const NeedleTable table(records());
  EXPECT_THAT(table.lengths, ElementsAre(1024, 2048));
  ASSERT_EQ(table.depths.size(), 2u);
  const auto json = table.json();
  EXPECT_DOUBLE_EQ(json["accuracy"].get<double>(), 2.25 / 5);
  EXPECT_EQ(json["samples"], 5);
  ASSERT_EQ(json["cells"].size(), 3u);  // nothing at 2048 and depth 0
  EXPECT_EQ(json["cells"][0]["length"], 1024);
  EXPECT_EQ(json["cells"][0]["samples"], 3);
  EXPECT_DOUBLE_EQ(json["cells"][0]["accuracy"].get<double>(), 1.25 / 3);
  EXPECT_EQ(table.text(),
            "   depth       1K       2K\n"
            "      0%      42%        -\n"
            "  33.33%       0%     100%\n");
  const Heatmap map = table.heatmap();
  EXPECT_THAT(map.columns, ElementsAre("1K", "2K"));
  EXPECT_THAT(map.rows, ElementsAre("0%", "33.33%"));
  ASSERT_EQ(map.values.size(), 4u);
  EXPECT_TRUE(std::isnan(map.values[1]));
  EXPECT_EQ(map.values[3], 1);
}

TEST(NeedleReportTest, NothingMeasured) {
  const NeedleTable table({});
  EXPECT_TRUE(table.json()["accuracy"].is_null());
  EXPECT_TRUE(table.json()["cells"].empty());
}

TEST(NeedleReportTest, CsvHasAsManyFieldsAsItsHeader) {
  EXPECT_EQ(needle_csv_header(), "length,depth,repeat,position,expected,predicted,score");
  EXPECT_EQ(needle_csv(records()[0]), "2048,0.333333,0,7,12345,\" 1234\"\"5\",1");
}

}  // namespace
}  // namespace rwkvx
