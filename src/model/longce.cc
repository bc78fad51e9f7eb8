#include "model/longce.h"

#include <algorithm>

#include "base/assert.h"

namespace rwkvx {

std::vector<TruncatedContext> truncated_contexts(std::span<const int64_t> offsets, const LongCe& longce) {
  RWKVX_ASSERT(longce.window > 0 && longce.stride > 0);
  std::vector<TruncatedContext> contexts;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t end = offsets[s + 1];
    for (int64_t begin = offsets[s]; begin + longce.window < end; begin += longce.stride) {
      contexts.push_back(
          {begin, begin + longce.window, std::min(begin + longce.window + longce.stride, end)});
    }
  }
  return contexts;
}

}  // namespace rwkvx
