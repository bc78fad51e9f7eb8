#pragma once

#include <optional>
#include <string>
#include <vector>

#include "drawing/scale.h"

namespace rwkvx {

/// One curve. Points whose x or y is not finite are left out and break the line.
struct Series {
  std::string name;           ///< in the legend; empty: not listed
  std::vector<double> x, y;   ///< as many of each
  std::vector<double> error;  ///< half the length of each point's error bar; empty: none
};

struct Axis {
  std::string label;
  ScaleKind scale = ScaleKind::linear;
  std::optional<double> low, high;  ///< else from the data
};

struct LineChart {
  std::string title, subtitle;
  Axis x, y;
  std::vector<Series> series;
  double width = 800, height = 460;
};

/// The chart as SVG. Long series are thinned to what the width can show.
std::string draw(const LineChart& chart);

}  // namespace rwkvx
