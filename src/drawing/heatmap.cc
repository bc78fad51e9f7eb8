#include "drawing/heatmap.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/assert.h"
#include "drawing/svg.h"

namespace rwkvx {
namespace {

constexpr double kMargin = 24, kLabelSize = 12, kGap = 2;
constexpr std::string_view kDark = "#111827", kMuted = "#6b7280", kUnknown = "#e5e7eb";

using Rgb = std::array<double, 3>;

/// Rose, amber, green; every cell also bears its number, for those who see these alike.
std::string color_of(double share) {
  constexpr std::array<Rgb, 5> kStops{
      {{190, 40, 70}, {235, 110, 75}, {246, 196, 83}, {150, 200, 120}, {32, 160, 120}}};
  const double at = std::clamp(share, 0.0, 1.0) * (kStops.size() - 1);
  const size_t i = std::min(static_cast<size_t>(at), kStops.size() - 2);
  const double t = at - static_cast<double>(i);
  std::array<int, 3> c{};
  for (size_t k = 0; k < 3; ++k) {
    c[k] = static_cast<int>(std::lround(kStops[i][k] * (1 - t) + kStops[i + 1][k] * t));
  }
  return fmt::format("#{:02x}{:02x}{:02x}", c[0], c[1], c[2]);
}

std::string_view ink_on(double share) { return share < 0.2 || share > 0.97 ? "#ffffff" : kDark; }

std::string label_of(const Heatmap& map, double value) {
  if (map.percent) return fmt::format("{:.0f}", 100 * value);
  return fmt::format("{:.3g}", value);
}

void draw_color_bar(Svg& svg, const Heatmap& map, double x, double top, double height) {
  constexpr int kSteps = 50;
  constexpr double kWidth = 14;
  for (int i = 0; i < kSteps; ++i) {
    const double from = top + height * i / kSteps;
    svg.rectangle(x, from, kWidth, height / kSteps + 0.5, color_of(1 - (i + 0.5) / kSteps));
  }
  for (int i = 0; i <= 4; ++i) {
    const double share = i / 4.0;
    const double value = map.low + share * (map.high - map.low);
    svg.text({x + kWidth + 6, top + height * (1 - share) + 4},
             label_of(map, value) + (map.percent ? "%" : ""), {.size = 11, .color = kMuted});
  }
  if (!map.value_label.empty()) {
    svg.text({x + kWidth + 52, top + height / 2}, map.value_label,
             {.size = kLabelSize, .anchor = Anchor::middle, .turn = -90});
  }
}

}  // namespace

std::string draw(const Heatmap& map) {
  const size_t columns = map.columns.size(), rows = map.rows.size();
  RWKVX_ASSERT(map.values.size() == columns * rows && map.high > map.low);
  const double cell_width = std::clamp(660.0 / static_cast<double>(std::max<size_t>(columns, 1)), 34.0, 72.0);
  const double cell_height = rows > 16 ? 24 : 34;

  double widest = 0;
  for (const std::string& row : map.rows) widest = std::max(widest, text_width(row, kLabelSize));
  const double left = kMargin + (map.y_label.empty() ? 0 : 22) + widest + 10;
  double top = kMargin;
  if (!map.title.empty()) top += 28;
  if (!map.subtitle.empty()) top += 22;
  const double grid_width = cell_width * static_cast<double>(columns);
  const double grid_height = cell_height * static_cast<double>(rows);
  const double heading = std::max(text_width(map.title, 17) * 1.05, text_width(map.subtitle, 12.5));
  const double bar_height = std::max(grid_height, 96.0);
  const double width = std::max(left + grid_width + 20 + 90, heading + 2 * kMargin);
  const double height = top + bar_height + 24 + (map.x_label.empty() ? 0 : 24) + kMargin / 2;

  Svg svg(width, height, map.title);
  double y = kMargin;
  if (!map.title.empty()) {
    svg.text({kMargin, y + 10}, map.title, {.size = 17, .color = kDark, .bold = true});
    y += 28;
  }
  if (!map.subtitle.empty()) {
    svg.text({kMargin, y + 6}, map.subtitle, {.size = 12.5, .color = kMuted});
  }

  for (size_t r = 0; r < rows; ++r) {
    const double cell_top = top + cell_height * static_cast<double>(r);
    svg.text({left - 8, cell_top + cell_height / 2 + 4}, map.rows[r],
             {.size = kLabelSize, .color = kMuted, .anchor = Anchor::end});
    for (size_t c = 0; c < columns; ++c) {
      const double value = map.values[r * columns + c];
      const double share = (value - map.low) / (map.high - map.low);
      const double cell_left = left + cell_width * static_cast<double>(c);
      const bool known = std::isfinite(value);
      svg.rectangle(cell_left + kGap / 2, cell_top + kGap / 2, cell_width - kGap, cell_height - kGap,
                    known ? color_of(share) : std::string(kUnknown), 3);
      if (!known) continue;
      svg.text({cell_left + cell_width / 2, cell_top + cell_height / 2 + 4}, label_of(map, value),
               {.size = 11.5, .color = ink_on(share), .anchor = Anchor::middle});
    }
  }
  for (size_t c = 0; c < columns; ++c) {
    svg.text({left + cell_width * (static_cast<double>(c) + 0.5), top + grid_height + 18}, map.columns[c],
             {.size = kLabelSize, .color = kMuted, .anchor = Anchor::middle});
  }
  if (!map.x_label.empty()) {
    svg.text({left + grid_width / 2, top + grid_height + 42}, map.x_label,
             {.size = 13, .anchor = Anchor::middle});
  }
  if (!map.y_label.empty()) {
    svg.text({kMargin + 8, top + grid_height / 2}, map.y_label,
             {.size = 13, .anchor = Anchor::middle, .turn = -90});
  }
  draw_color_bar(svg, map, left + grid_width + 20, top + kGap / 2, bar_height - kGap);
  return svg.finish();
}

}  // namespace rwkvx
