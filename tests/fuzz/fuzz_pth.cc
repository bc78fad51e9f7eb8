#include "fuzz_catalog.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return rwkvx::fuzz_catalog(rwkvx::parse_pth, data, size);
}
