// Any text gives a well-formed document; pictures are written under the right format.
#include "drawing/svg.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <limits>

#include "drawing/picture.h"
#include "drawing/xml.h"
#include "error_of.h"

namespace rwkvx {
namespace {

using rwkvx::testing::error_of;
using ::testing::HasSubstr;

TEST(SvgTest, TextIsEscapedAndComesBack) {
  const std::string text = "a < b && \"c\" > 'd' — ä€𝄞";
  Svg svg(100, 50, text);
  svg.text({1, 2}, text);
  const auto elements = test::parse_xml(svg.finish());
  EXPECT_EQ(elements[0].name, "svg");
  EXPECT_EQ(elements[1].name, "title");
  EXPECT_EQ(elements[1].text, text);
  EXPECT_EQ(elements.back().name, "text");
  EXPECT_EQ(elements.back().text, text);
}

TEST(SvgTest, BytesThatXmlCannotHoldAreReplaced) {
  const std::string r = "\xef\xbf\xbd";
  EXPECT_EQ(xml_escape(std::string("a\0b", 3)), "a" + r + "b");
  EXPECT_EQ(xml_escape("\x1b[0m"), r + "[0m");
  EXPECT_EQ(xml_escape("\xff\xfe"), r + r);
  EXPECT_EQ(xml_escape("\xc3"), r);                  // cut
  EXPECT_EQ(xml_escape("\xc0\xaf"), r + r);          // overlong
  EXPECT_EQ(xml_escape("\xed\xa0\x80"), r + r + r);  // a surrogate
  EXPECT_EQ(xml_escape("\xf4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(xml_escape("\xef\xbf\xbf"), r + r + r);  // U+FFFF
  EXPECT_EQ(xml_escape("\xe2\x82\xac\xf0\x9d\x84\x9e"), "\xe2\x82\xac\xf0\x9d\x84\x9e");
  EXPECT_EQ(xml_escape("a\nb\tc"), "a b c");
}

TEST(SvgTest, NumbersAreFinite) {
  Svg svg(100, 50, "");
  const double nan = std::numeric_limits<double>::quiet_NaN(),
               infinity = std::numeric_limits<double>::infinity();
  svg.circle({nan, infinity}, -0.0001, "red");
  const auto circle = test::parse_xml(svg.finish()).back();
  EXPECT_EQ(circle.attributes.at("cx"), "0");
  EXPECT_EQ(circle.attributes.at("cy"), "0");
  EXPECT_EQ(circle.attributes.at("r"), "0");
}

class PictureTest : public ::testing::Test {
 protected:
  PictureTest() { std::filesystem::create_directories(folder_); }
  ~PictureTest() override { std::filesystem::remove_all(folder_); }
  const Path folder_ = Path(::testing::TempDir()) / ("rwkvx_picture_" + std::to_string(::getpid()));
  const std::string svg_ = Svg(30, 20, "small").finish();
};

TEST_F(PictureTest, SvgIsWrittenAsItIs) {
  write_picture(folder_ / "a.SVG", svg_);
  EXPECT_EQ(read_file(folder_ / "a.SVG"), svg_);
}

TEST_F(PictureTest, OtherEndingsAreRefused) {
  for (const char* name : {"a.jpg", "a", "a.svg.gz"}) {
    EXPECT_THAT(error_of([&] { write_picture(folder_ / name, svg_); }), HasSubstr(".svg or .png"));
    EXPECT_FALSE(std::filesystem::exists(folder_ / name));
  }
}

TEST_F(PictureTest, PngIsWrittenOrSaysWhyNot) {
  const std::string error = error_of([&] { write_picture(folder_ / "a.png", svg_); });
  if (!png_available()) {
    EXPECT_THAT(error, HasSubstr("librsvg"));
    EXPECT_FALSE(std::filesystem::exists(folder_ / "a.png"));
    return;
  }
  EXPECT_EQ(error, "");
  const std::string png = read_file(folder_ / "a.png");
  EXPECT_THAT(png, ::testing::StartsWith("\x89PNG\r\n\x1a\n"));
  // IHDR: width and height, big-endian, twice the picture's.
  EXPECT_EQ(png.substr(16, 8), std::string("\0\0\0\x3c\0\0\0\x28", 8));
  EXPECT_THAT(error_of([] { png_from_svg("<svg"); }), HasSubstr("SVG"));
}

}  // namespace
}  // namespace rwkvx
