#include "drawing/line_chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "base/assert.h"
#include "drawing/svg.h"

namespace rwkvx {
namespace {

constexpr std::array<std::string_view, 8> kColors{"#2563eb", "#ea580c", "#059669", "#9333ea",
                                                  "#dc2626", "#0891b2", "#ca8a04", "#4b5563"};
constexpr std::string_view kGrid = "#e5e7eb", kFrame = "#9ca3af", kDark = "#111827", kMuted = "#6b7280";
constexpr size_t kMostMarkers = 40;
constexpr double kMargin = 24, kTickSize = 12;

struct Frame {
  double left, top, width, height;
};

Scale axis_scale(const Axis& axis, const std::vector<Series>& all, bool vertical) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  const auto include = [&](double v) {
    if (!std::isfinite(v) || (axis.scale != ScaleKind::linear && v <= 0)) return;
    low = std::min(low, v);
    high = std::max(high, v);
  };
  for (const Series& s : all) {
    for (size_t i = 0; i < s.x.size(); ++i) {
      if (!std::isfinite(s.x[i]) || !std::isfinite(s.y[i])) continue;
      const double v = vertical ? s.y[i] : s.x[i];
      include(v);
      if (!vertical || s.error.empty()) continue;
      include(v - s.error[i]);
      include(v + s.error[i]);
    }
  }
  // Curves end where their data end; only values get round limits.
  const bool exact = !vertical || (axis.low && axis.high);
  return {axis.scale, axis.low.value_or(low), axis.high.value_or(high), exact};
}

/// Points that share a column of half a pixel become their lowest and highest.
std::vector<Point> thinned(const std::vector<Point>& points) {
  if (points.size() < 1000) return points;
  std::vector<Point> out;
  for (size_t i = 0; i < points.size();) {
    const double column = std::floor(2 * points[i].x);
    size_t low = i, high = i, end = i;
    for (; end < points.size() && std::floor(2 * points[end].x) == column; ++end) {
      if (points[end].y < points[low].y) low = end;
      if (points[end].y > points[high].y) high = end;
    }
    out.push_back(points[std::min(low, high)]);
    if (low != high) out.push_back(points[std::max(low, high)]);
    i = end;
  }
  return out;
}

void draw_series(Svg& svg, const Series& s, std::string_view color, const Scale& x, const Scale& y,
                 const Frame& frame) {
  const auto vertical = [&](double v) {
    const double place = y.place(v);
    // Below a logarithmic axis: far down, where the clip cuts it off.
    return frame.top + frame.height * (1 - (std::isnan(place) ? -10 : std::clamp(place, -10.0, 11.0)));
  };
  const bool markers = s.x.size() <= kMostMarkers;
  std::vector<Point> run;
  const auto end_run = [&] {
    if (run.size() > 1) svg.polyline(thinned(run), color, markers ? 2 : 1.5);
    for (const Point& p : run) {
      if (markers || run.size() == 1) svg.circle(p, 3.5, color);
    }
    run.clear();
  };
  for (size_t i = 0; i < s.x.size(); ++i) {
    const double across = x.place(s.x[i]);
    if (!std::isfinite(across) || !std::isfinite(s.y[i]) || std::isnan(y.place(s.y[i]))) {
      end_run();
      continue;
    }
    const Point p{frame.left + frame.width * std::clamp(across, -10.0, 11.0), vertical(s.y[i])};
    run.push_back(p);
    if (markers && !s.error.empty() && s.error[i] > 0) {
      const double low = vertical(s.y[i] - s.error[i]), high = vertical(s.y[i] + s.error[i]);
      svg.line({p.x, low}, {p.x, high}, color, 1.25);
      for (const double end : {low, high}) svg.line({p.x - 4, end}, {p.x + 4, end}, color, 1.25);
    }
  }
  end_run();
}

/// Rows of coloured names from `top` down; returns where they end.
double draw_legend(Svg& svg, const std::vector<Series>& all, double left, double right, double top) {
  constexpr double kRow = 20, kMark = 26, kGap = 20;
  double x = left, y = top;
  bool any = false;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].name.empty()) continue;
    const double width = kMark + text_width(all[i].name, kTickSize);
    if (any && x + width > right) {
      x = left;
      y += kRow;
    }
    const std::string_view color = kColors[i % kColors.size()];
    svg.line({x, y + 6}, {x + 20, y + 6}, color, 2.5);
    svg.text({x + kMark, y + 10}, all[i].name, {.size = kTickSize});
    x += width + kGap;
    any = true;
  }
  return any ? y + kRow + 4 : top;
}

}  // namespace

std::string draw(const LineChart& chart) {
  for (const Series& s : chart.series) {
    RWKVX_ASSERT(s.x.size() == s.y.size() && (s.error.empty() || s.error.size() == s.x.size()));
  }
  const Scale x = axis_scale(chart.x, chart.series, false), y = axis_scale(chart.y, chart.series, true);
  Svg svg(chart.width, chart.height, chart.title);

  double top = kMargin;
  if (!chart.title.empty()) {
    svg.text({kMargin, top + 10}, chart.title, {.size = 17, .color = kDark, .bold = true});
    top += 28;
  }
  if (!chart.subtitle.empty()) {
    svg.text({kMargin, top + 6}, chart.subtitle, {.size = 12.5, .color = kMuted});
    top += 22;
  }

  const auto y_ticks = y.ticks(7);
  double widest = 0;
  for (const Scale::Tick& tick : y_ticks) widest = std::max(widest, text_width(tick.label, kTickSize));
  Frame frame{};
  frame.left = kMargin + (chart.y.label.empty() ? 0 : 22) + widest + 8;
  frame.width = std::max(50.0, chart.width - kMargin - frame.left);
  frame.top = draw_legend(svg, chart.series, frame.left, frame.left + frame.width, top) + 6;
  const double below = 22 + (chart.x.label.empty() ? 0 : 24) + kMargin / 2;
  frame.height = std::max(50.0, chart.height - below - frame.top);
  const double right = frame.left + frame.width, bottom = frame.top + frame.height;

  for (const Scale::Tick& tick : y_ticks) {
    const double at = bottom - frame.height * y.place(tick.value);
    svg.line({frame.left, at}, {right, at}, kGrid);
    svg.text({frame.left - 8, at + 4}, tick.label,
             {.size = kTickSize, .color = kMuted, .anchor = Anchor::end});
  }
  for (const Scale::Tick& tick : x.ticks(static_cast<int>(frame.width / 55))) {
    const double at = frame.left + frame.width * x.place(tick.value);
    svg.line({at, frame.top}, {at, bottom}, kGrid);
    svg.text({at, bottom + 18}, tick.label, {.size = kTickSize, .color = kMuted, .anchor = Anchor::middle});
  }
  svg.line({frame.left, bottom}, {right, bottom}, kFrame, 1.25);
  if (!chart.x.label.empty()) {
    svg.text({frame.left + frame.width / 2, bottom + 42}, chart.x.label,
             {.size = 13, .anchor = Anchor::middle});
  }
  if (!chart.y.label.empty()) {
    svg.text({kMargin + 8, frame.top + frame.height / 2}, chart.y.label,
             {.size = 13, .anchor = Anchor::middle, .turn = -90});
  }

  // A little more than the frame, so that markers on its edge stay whole.
  svg.begin_clip(frame.left - 4, frame.top - 4, frame.width + 8, frame.height + 8);
  for (size_t i = 0; i < chart.series.size(); ++i) {
    draw_series(svg, chart.series[i], kColors[i % kColors.size()], x, y, frame);
  }
  svg.end_clip();
  return svg.finish();
}

}  // namespace rwkvx
