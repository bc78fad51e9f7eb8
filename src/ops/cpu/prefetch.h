#pragma once

#include <cstdint>

namespace rwkvx::cpu {

/// Into the second cache: of Intel's processors, more of such requests can be on their way than of those into
/// the first. Always inlined: to GCC a function that only does this has no effect, and it drops calls from
/// code for other instruction sets.
[[gnu::always_inline]] inline void prefetch(const void* line) { __builtin_prefetch(line, 0, 2); }

/// Into the first cache.
[[gnu::always_inline]] inline void prefetch_first(const void* line) { __builtin_prefetch(line, 0, 3); }

/// How many bytes ahead a long stream is fetched into the first cache, and into the second.
inline constexpr int64_t kFirstCacheAhead = 8192, kSecondCacheAhead = 4096;

/// Whether memory is read fastest as several pages at once (Intel's processors, whose own prefetching follows
/// each page by itself and goes only so far ahead), or as one stream.
extern const bool reads_pages_together;

/// Where memory is read from end to end: asks for what will be read later when the line at `line` is read.
/// The lines of kPages pages ask for those of the next ones, for the first of each page, then for the second
/// ones.
[[gnu::always_inline]] inline void fetch_ahead(const void* line) {
  constexpr uintptr_t kPages = 8, kPage = 4096, kLine = 64;
  const auto at = reinterpret_cast<uintptr_t>(line);
  if (!reads_pages_together) return prefetch(reinterpret_cast<const void*>(at + kSecondCacheAhead));
  const uintptr_t first = at / (kPages * kPage) * (kPages * kPage) + kPages * kPage;
  const uintptr_t page = at / kLine % kPages, line_of_page = at / kLine / kPages % (kPage / kLine);
  __builtin_prefetch(reinterpret_cast<const void*>(first + page * kPage + line_of_page * kLine), 0, 3);
}

}  // namespace rwkvx::cpu
