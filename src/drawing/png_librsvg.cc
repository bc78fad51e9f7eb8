#include <librsvg/rsvg.h>

#include <cmath>
#include <memory>

#include "base/error.h"
#include "drawing/picture.h"

namespace rwkvx {
namespace {

constexpr double kMostPixels = 16384;  // of a side; cairo takes 32767

cairo_status_t append(void* out, const unsigned char* data, unsigned int size) {
  static_cast<std::string*>(out)->append(reinterpret_cast<const char*>(data), size);
  return CAIRO_STATUS_SUCCESS;
}

struct Free {
  void operator()(RsvgHandle* handle) const { g_object_unref(handle); }
  void operator()(cairo_surface_t* surface) const { cairo_surface_destroy(surface); }
  void operator()(cairo_t* context) const { cairo_destroy(context); }
  void operator()(GError* error) const { g_error_free(error); }
};

void check(cairo_status_t status) {
  if (status != CAIRO_STATUS_SUCCESS) fail("drawing a PNG failed: {}", cairo_status_to_string(status));
}

}  // namespace

bool png_available() { return true; }

std::string png_from_svg(std::string_view svg, double zoom) {
  GError* raw_error = nullptr;
  const auto refuse = [&] {
    const std::unique_ptr<GError, Free> error(raw_error);
    fail("the SVG cannot be drawn as PNG: {}",
         error != nullptr ? printable(error->message) : "no reason given");
  };
  const std::unique_ptr<RsvgHandle, Free> handle(
      rsvg_handle_new_from_data(reinterpret_cast<const guint8*>(svg.data()), svg.size(), &raw_error));
  if (handle == nullptr) refuse();
  double width = 0, height = 0;
  if (!rsvg_handle_get_intrinsic_size_in_pixels(handle.get(), &width, &height)) {
    fail("the SVG cannot be drawn as PNG: it does not say its size in pixels");
  }
  width = std::ceil(width * zoom);
  height = std::ceil(height * zoom);
  if (!(width >= 1 && height >= 1 && width <= kMostPixels && height <= kMostPixels)) {
    fail("a PNG of {} x {} pixels is too large or empty; write .svg", width, height);
  }
  const std::unique_ptr<cairo_surface_t, Free> surface(
      cairo_image_surface_create(CAIRO_FORMAT_ARGB32, static_cast<int>(width), static_cast<int>(height)));
  check(cairo_surface_status(surface.get()));
  {
    const std::unique_ptr<cairo_t, Free> context(cairo_create(surface.get()));
    const RsvgRectangle page{0, 0, width, height};
    if (!rsvg_handle_render_document(handle.get(), context.get(), &page, &raw_error)) refuse();
    check(cairo_status(context.get()));
  }
  std::string png;
  check(cairo_surface_write_to_png_stream(surface.get(), append, &png));
  return png;
}

}  // namespace rwkvx
