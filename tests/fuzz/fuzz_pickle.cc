#include "base/error.h"
#include "formats/pickle_reader.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    rwkvx::read_pickle("fuzzed", std::as_bytes(std::span(data, size)));
  } catch (const rwkvx::Error&) {
  }
  return 0;
}
