#include "drawing/svg.h"

#include <fmt/format.h>

#include <cmath>

namespace rwkvx {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

/// Hundredths of a pixel, without the zeros that say nothing. Not a number would break the whole picture.
std::string number(double value) {
  if (!std::isfinite(value)) value = 0;
  std::string text = fmt::format("{:.2f}", value);
  text.erase(text.find_last_not_of('0') + 1);
  if (text.back() == '.') text.pop_back();
  return text == "-0" ? "0" : text;
}

/// Bytes of the well-formed UTF-8 character that `text` begins with, 0 when there is none (RFC 3629).
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xc2 && lead < 0xe0   ? 2
                        : lead >= 0xe0 && lead < 0xf0 ? 3
                        : lead >= 0xf0 && lead < 0xf5 ? 4
                                                      : 0;
  if (length == 0 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xbf) return 0;
  }
  const unsigned char second = byte(1);
  if (lead == 0xe0 && second < 0xa0) return 0;                      // overlong
  if (lead == 0xed && second > 0x9f) return 0;                      // surrogates
  if (lead == 0xf0 && second < 0x90) return 0;                      // overlong
  if (lead == 0xf4 && second > 0x8f) return 0;                      // above U+10FFFF
  if (lead == 0xef && second == 0xbf && byte(2) >= 0xbe) return 0;  // U+FFFE and U+FFFF are not XML
  return length;
}

}  // namespace

std::string xml_escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const size_t length = character_length(text);
    const char first = text.front();
    if (length == 0) {
      out += kReplacement;
    } else if (first == '&') {
      out += "&amp;";
    } else if (first == '<') {
      out += "&lt;";
    } else if (first == '>') {
      out += "&gt;";
    } else if (first == '"') {
      out += "&quot;";
    } else if (length == 1 && static_cast<unsigned char>(first) < 0x20) {
      out += first == '\t' || first == '\n' || first == '\r' ? std::string_view(" ") : kReplacement;
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

double text_width(std::string_view text, double size) {
  double ems = 0;
  for (const char c : text) {
    if ((static_cast<unsigned char>(c) & 0xc0) == 0x80) continue;  // inside a character
    if (std::string_view("iljtfrI.,:;'| ()[]").find(c) != std::string_view::npos) {
      ems += 0.33;
    } else {
      ems += c == 'm' || c == 'w' || (c >= 'A' && c <= 'Z') ? 0.7 : 0.57;
    }
  }
  return ems * size;
}

Svg::Svg(double width, double height, std::string_view title)
    : width_(width), height_(height), title_(xml_escape(title)) {
  rectangle(0, 0, width, height, "#ffffff");
}

void Svg::rectangle(double x, double y, double width, double height, std::string_view fill, double radius) {
  body_ += fmt::format(R"(<rect x="{}" y="{}" width="{}" height="{}")", number(x), number(y), number(width),
                       number(height));
  if (radius > 0) body_ += fmt::format(R"( rx="{}")", number(radius));
  body_ += fmt::format(" fill=\"{}\"/>\n", xml_escape(fill));
}

void Svg::line(Point from, Point to, std::string_view color, double width, std::string_view dashes) {
  body_ +=
      fmt::format(R"(<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="{}")", number(from.x),
                  number(from.y), number(to.x), number(to.y), xml_escape(color), number(width));
  if (!dashes.empty()) body_ += fmt::format(R"( stroke-dasharray="{}")", xml_escape(dashes));
  body_ += "/>\n";
}

void Svg::polyline(std::span<const Point> points, std::string_view color, double width) {
  body_ += fmt::format(
      R"(<polyline fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round" stroke-linecap="round" points=")",
      xml_escape(color), number(width));
  for (size_t i = 0; i < points.size(); ++i) {
    body_ += fmt::format("{}{},{}", i == 0 ? "" : " ", number(points[i].x), number(points[i].y));
  }
  body_ += "\"/>\n";
}

void Svg::circle(Point center, double radius, std::string_view fill) {
  body_ += fmt::format("<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{}\"/>\n", number(center.x),
                       number(center.y), number(radius), xml_escape(fill));
}

void Svg::text(Point at, std::string_view text, const TextStyle& style) {
  body_ += fmt::format(R"(<text x="{}" y="{}" font-size="{}" fill="{}")", number(at.x), number(at.y),
                       number(style.size), xml_escape(style.color));
  if (style.anchor != Anchor::start) {
    body_ += fmt::format(R"( text-anchor="{}")", style.anchor == Anchor::middle ? "middle" : "end");
  }
  if (style.bold) body_ += R"( font-weight="600")";
  if (style.turn != 0) {
    body_ += fmt::format(" transform=\"rotate({} {} {})\"", number(style.turn), number(at.x), number(at.y));
  }
  body_ += fmt::format(">{}</text>\n", xml_escape(text));
}

void Svg::begin_clip(double x, double y, double width, double height) {
  body_ += fmt::format(
      "<clipPath id=\"clip{0}\"><rect x=\"{1}\" y=\"{2}\" width=\"{3}\" height=\"{4}\"/></clipPath>\n"
      "<g clip-path=\"url(#clip{0})\">\n",
      clips_++, number(x), number(y), number(width), number(height));
}

void Svg::end_clip() { body_ += "</g>\n"; }

std::string Svg::finish() const {
  return fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "role=\"img\" "
      "font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\">\n"
      "<title>{2}</title>\n{3}</svg>\n",
      number(width_), number(height_), title_, body_);
}

}  // namespace rwkvx
