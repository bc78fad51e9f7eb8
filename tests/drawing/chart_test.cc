// What charts and heat maps show, read back from their XML.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "drawing/heatmap.h"
#include "drawing/line_chart.h"
#include "drawing/xml.h"

namespace rwkvx {
namespace {

using test::parse_xml;
using test::XmlElement;
using testing::Contains;

const double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<XmlElement> named(const std::vector<XmlElement>& all, const std::string& name) {
  std::vector<XmlElement> out;
  std::copy_if(all.begin(), all.end(), std::back_inserter(out),
               [&](const XmlElement& e) { return e.name == name; });
  return out;
}

std::vector<std::string> texts(const std::vector<XmlElement>& all) {
  std::vector<std::string> out;
  for (const XmlElement& e : named(all, "text")) out.push_back(e.text);
  return out;
}

size_t points_of(const XmlElement& polyline) {
  const std::string& points = polyline.attributes.at("points");
  return static_cast<size_t>(std::count(points.begin(), points.end(), ','));
}

LineChart small_chart() {
  LineChart chart;
  chart.title = "Loss <by> position";
  chart.x = {.label = "position", .scale = ScaleKind::log2, .low = {}, .high = {}};
  chart.y = {.label = "nats & more", .scale = ScaleKind::linear, .low = {}, .high = {}};
  chart.series = {{"first", {1024, 2048, 4096}, {3, 2.5, 2.2}, {0.2, 0.1, 0.1}},
                  {"second", {1024, 2048, 4096}, {3.1, 2.9, 2.8}, {}}};
  return chart;
}

TEST(LineChartTest, ShowsSeriesLegendAxesAndErrorBars) {
  const auto all = parse_xml(draw(small_chart()));
  const auto text = texts(all);
  for (const char* expected :
       {"Loss <by> position", "position", "nats & more", "first", "second", "1K", "2K", "4K"})
    EXPECT_THAT(text, Contains(expected));
  const auto lines = named(all, "polyline");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(points_of(lines[0]), 3u);
  EXPECT_NE(lines[0].attributes.at("stroke"), lines[1].attributes.at("stroke"));
  EXPECT_EQ(named(all, "circle").size(), 6u);

  LineChart without = small_chart();
  without.series[0].error.clear();
  without.y.low = 2;
  without.y.high = 4;
  LineChart with = without;
  with.series[0].error = {0.2, 0.1, 0.1};
  EXPECT_EQ(named(parse_xml(draw(with)), "line").size(), named(parse_xml(draw(without)), "line").size() + 9);
}

TEST(LineChartTest, MarkersStandWhereTheValuesAre) {
  LineChart chart;
  chart.x = {.label = "", .scale = ScaleKind::linear, .low = 0, .high = 4};
  chart.y = {.label = "", .scale = ScaleKind::log10, .low = 1, .high = 100};
  chart.series = {{"", {0, 1, 4}, {1, 10, 100}, {}}};
  const auto circles = named(parse_xml(draw(chart)), "circle");
  ASSERT_EQ(circles.size(), 3u);
  const auto at = [&](size_t i, const char* key) { return std::stod(circles[i].attributes.at(key)); };
  EXPECT_NEAR(at(1, "cx") - at(0, "cx"), (at(2, "cx") - at(0, "cx")) / 4, 0.02);
  EXPECT_NEAR(at(1, "cy"), (at(0, "cy") + at(2, "cy")) / 2, 0.02);
  EXPECT_GT(at(0, "cy"), at(2, "cy"));
}

TEST(LineChartTest, ValuesThatAreNotNumbersBreakTheLine) {
  LineChart chart = small_chart();
  chart.series = {{"a", {1, 2, 3, 4, 5}, {1, 2, kNan, 4, 5}, {}}};
  const auto lines = named(parse_xml(draw(chart)), "polyline");
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(points_of(lines[0]), 2u);
  EXPECT_EQ(points_of(lines[1]), 2u);
  for (const std::vector<double>& y : {std::vector<double>{}, {kNan, kNan}}) {
    chart.series = {{"a", std::vector<double>(y.size(), 1), y, {}}};
    EXPECT_TRUE(named(parse_xml(draw(chart)), "polyline").empty());
  }
  chart.series.clear();
  EXPECT_FALSE(parse_xml(draw(chart)).empty());
}

TEST(LineChartTest, LongSeriesAreThinnedButKeepTheirExtremes) {
  LineChart chart;
  Series series{"long", {}, {}, {}};
  for (int i = 0; i < 200000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 123456 ? 9 : std::sin(i * 0.001));
  }
  chart.series = {series};
  chart.y.low = -1;
  chart.y.high = 9;
  const auto lines = named(parse_xml(draw(chart)), "polyline");
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_LT(points_of(lines[0]), 4000u);
  EXPECT_GT(points_of(lines[0]), 1000u);
  // The one spike reaches the top of the plot, far above everything else.
  std::vector<double> heights;
  const std::string& points = lines[0].attributes.at("points");
  for (size_t at = 0; (at = points.find(',', at)) != points.npos; ++at)
    heights.push_back(std::stod(points.substr(at + 1)));
  std::sort(heights.begin(), heights.end());
  EXPECT_LT(heights[0] + 200, heights[1]);
}

TEST(HeatmapTest, ShowsEveryCell) {
  Heatmap map;
  map.title = "A & B";
  map.x_label = "length";
  map.y_label = "depth";
  map.columns = {"1K", "2K", "4K"};
  map.rows = {"0%", "100%"};
  map.values = {0, 0.25, 1, 0.5, kNan, 0.125};
  const auto all = parse_xml(draw(map));
  const auto text = texts(all);
  for (const char* expected :
       {"A & B", "length", "depth", "1K", "4K", "0%", "100%", "0", "25", "100", "50", "12"})
    EXPECT_THAT(text, Contains(expected));

  std::vector<XmlElement> cells;
  for (const XmlElement& e : named(all, "rect")) {
    if (e.attributes.count("rx") != 0) cells.push_back(e);
  }
  ASSERT_EQ(cells.size(), 6u);
  std::vector<std::string> colors;
  for (const XmlElement& cell : cells) colors.push_back(cell.attributes.at("fill"));
  std::sort(colors.begin(), colors.end());
  EXPECT_EQ(std::unique(colors.begin(), colors.end()), colors.end());
  // Columns from the left, rows from the top.
  const auto at = [&](size_t i, const char* key) { return std::stod(cells[i].attributes.at(key)); };
  EXPECT_LT(at(0, "x"), at(1, "x"));
  EXPECT_EQ(at(0, "x"), at(3, "x"));
  EXPECT_LT(at(0, "y"), at(3, "y"));
}

TEST(HeatmapTest, AnEmptyOneIsADocumentToo) { EXPECT_FALSE(parse_xml(draw(Heatmap{})).empty()); }

}  // namespace
}  // namespace rwkvx
