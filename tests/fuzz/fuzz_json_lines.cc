// Lines of JSON: any bytes are either refused with an Error or give a text, or its segments.
#include <string>

#include "base/error.h"
#include "training/documents.h"
#include "training/token_marks.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  try {
    static_cast<void>(text_segments(std::string_view(reinterpret_cast<const char*>(data), size)));
  } catch (const Error&) {
  }
  try {
    static_cast<void>(text_of_json(std::string_view(reinterpret_cast<const char*>(data), size), "text"));
  } catch (const Error&) {
  }
  return 0;
}
