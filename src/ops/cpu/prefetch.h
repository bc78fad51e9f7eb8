#pragma once

namespace rwkvx::cpu {

/// Into the second cache: more of such requests can be on their way than of those into the first. Always
/// inlined: to GCC a function that only does this has no effect, and it drops calls from code for other
/// instruction sets.
[[gnu::always_inline]] inline void prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }

}  // namespace rwkvx::cpu
