#include "base/error.h"
#include "drawing/picture.h"

namespace rwkvx {

bool png_available() { return false; }

std::string png_from_svg(std::string_view, double) {
  fail(
      "this build cannot write PNG: install librsvg (Debian: librsvg2-dev) and build again, or write .svg, "
      "which every browser shows");
}

}  // namespace rwkvx
