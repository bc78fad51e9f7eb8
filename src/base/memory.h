#pragma once

#include <cstdint>

namespace rwkvx {

/// The most memory the process has had resident so far, in bytes; 0 when unknown.
uint64_t peak_resident_bytes();

}  // namespace rwkvx
