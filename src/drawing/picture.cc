#include "drawing/picture.h"

#include "base/error.h"

namespace rwkvx {

void write_picture(const Path& path, std::string_view svg) {
  std::string ending = path.extension().string();
  for (char& c : ending) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  if (ending != ".svg" && ending != ".png") {
    fail("{}: pictures are written as .svg or .png; end the name in one of them", path.string());
  }
  const std::string png = ending == ".png" ? png_from_svg(svg) : std::string();
  AtomicFile file(path);
  file.write(ending == ".png" ? std::string_view(png) : svg);
  file.commit();
}

}  // namespace rwkvx
