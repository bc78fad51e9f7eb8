#pragma once

namespace rwkvx {
[[noreturn]] void assertion_failed(const char* condition, const char* file, int line);
}

/// Checks what only a programmer can get wrong; on in every build, so keep it out of inner loops.
#define RWKVX_ASSERT(condition) \
  ((condition) ? static_cast<void>(0) : ::rwkvx::assertion_failed(#condition, __FILE__, __LINE__))
