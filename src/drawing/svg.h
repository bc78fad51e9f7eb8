#pragma once

#include <span>
#include <string>
#include <string_view>

namespace rwkvx {

struct Point {
  double x = 0, y = 0;
};

enum class Anchor { start, middle, end };

struct TextStyle {
  double size = 12;
  std::string_view color = "#374151";
  Anchor anchor = Anchor::start;
  bool bold = false;
  double turn = 0;  ///< degrees clockwise around the text's place
};

/// An SVG 1.1 picture built shape by shape, in pixels from the top left. Text stays text; whatever it
/// contains, the result is well-formed XML. The same calls give the same bytes.
class Svg {
 public:
  /// White, with `title` as the picture's accessible name.
  Svg(double width, double height, std::string_view title);

  void rectangle(double x, double y, double width, double height, std::string_view fill, double radius = 0);
  void line(Point from, Point to, std::string_view color, double width = 1, std::string_view dashes = "");
  void polyline(std::span<const Point> points, std::string_view color, double width);
  void circle(Point center, double radius, std::string_view fill);
  /// The baseline of the text is at y.
  void text(Point at, std::string_view text, const TextStyle& style = {});
  /// Until end_clip(), nothing is drawn outside this rectangle.
  void begin_clip(double x, double y, double width, double height);
  void end_clip();

  /// The whole document.
  std::string finish() const;

 private:
  std::string body_;
  double width_, height_;
  std::string title_;
  int clips_ = 0;
};

/// Text as XML character data or attribute: markup escaped; what is not valid UTF-8 or not allowed in XML
/// becomes U+FFFD.
std::string xml_escape(std::string_view text);

/// About how wide a text of this size is, for laying out; fonts differ.
double text_width(std::string_view text, double size);

}  // namespace rwkvx
