#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "formats/file_bytes.h"

namespace rwkvx {

/// Parses the bytes and reads every byte of every tensor. The answer may be an Error and nothing else.
template <typename Parser>
int fuzz_catalog(Parser parse, const uint8_t* data, size_t size) {
  try {
    const Catalog catalog = parse({"fuzzed", std::as_bytes(std::span(data, size)), nullptr});
    volatile unsigned sum = 0;
    uint64_t read = 0;
    for (const CatalogTensor& t : catalog.tensors()) {
      const auto bytes = t.data.raw();
      if ((read += bytes.size()) > (uint64_t{1} << 24)) break;  // tensors may share storages
      for (std::byte b : bytes) sum = sum + static_cast<unsigned>(b);
    }
  } catch (const Error&) {
  }
  return 0;
}

}  // namespace rwkvx
