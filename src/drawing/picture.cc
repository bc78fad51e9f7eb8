#include "drawing/picture.h"

#include "base/error.h"

namespace rwkvx {

namespace {

std::string ending(const Path& path) {
  std::string out = path.extension().string();
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

}  // namespace

void check_picture(const Path& path) {
  if (ending(path) != ".svg" && ending(path) != ".png") {
    fail("{}: pictures are written as .svg or .png; end the name in one of them", path.string());
  }
  if (ending(path) == ".png" && !png_available()) png_from_svg("");
}

void write_picture(const Path& path, std::string_view svg) {
  check_picture(path);
  const bool as_png = ending(path) == ".png";
  const std::string png = as_png ? png_from_svg(svg) : std::string();
  AtomicFile file(path);
  file.write(as_png ? std::string_view(png) : svg);
  file.commit();
}

}  // namespace rwkvx
