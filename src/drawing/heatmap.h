#pragma once

#include <string>
#include <vector>

namespace rwkvx {

/// A table of coloured cells, as papers show retrieval by length and depth.
struct Heatmap {
  std::string title, subtitle;
  std::string x_label, y_label, value_label;
  std::vector<std::string> columns, rows;  ///< labels, from the left and from the top
  std::vector<double> values;              ///< [rows, columns]; NaN: not measured, drawn grey
  double low = 0, high = 1;                ///< values at the two ends of the colour bar
  bool percent = true;                     ///< cells are labelled in percent instead of plainly
};

/// The map as SVG; its size follows from the number of cells.
std::string draw(const Heatmap& map);

}  // namespace rwkvx
