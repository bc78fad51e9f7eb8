#pragma once

#include <string>
#include <string_view>

#include "base/file.h"

namespace rwkvx {

/// Whether this build can turn SVG into PNG (librsvg was there when it was configured).
bool png_available();

/// A PNG of an SVG, `zoom` pixels for each of its own. Errors: a build without librsvg (says how to get one);
/// an SVG that librsvg refuses.
std::string png_from_svg(std::string_view svg, double zoom = 2);

/// Errors: a name that write_picture() refuses in this build.
void check_picture(const Path& path);

/// Writes an SVG to a file that ends in .svg, or as PNG to one that ends in .png. Errors: another ending;
/// those of png_from_svg and AtomicFile.
void write_picture(const Path& path, std::string_view svg);

}  // namespace rwkvx
