#include "model/slices.h"

#include <algorithm>

#include "base/assert.h"

namespace rwkvx {

std::vector<Slice> slices_of(std::span<const int64_t> offsets, int64_t rows) {
  RWKVX_ASSERT(rows >= kWkv7Interval);
  std::vector<Slice> slices;
  size_t sequence = 0;
  int64_t interval = 0;
  for (int64_t begin = 0; begin < offsets.back();) {
    Slice slice;
    slice.begin = begin;
    slice.first_sequence = sequence;
    slice.begins_within = begin > offsets[sequence];
    slice.first_interval = interval;
    slice.offsets.push_back(0);
    int64_t left = rows, end = begin;
    for (; sequence + 1 < offsets.size() && left > 0; ++sequence) {
      const int64_t length = offsets[sequence + 1] - end;
      if (length > left) {
        end += left / kWkv7Interval * kWkv7Interval;
        slice.ends_within = end > std::max(begin, offsets[sequence]);
        if (slice.ends_within) slice.offsets.push_back(end - begin);
        break;
      }
      end += length;
      left -= length;
      slice.offsets.push_back(end - begin);
    }
    slice.end = end;
    interval += wkv7_intervals(slice.offsets);
    begin = end;
    slices.push_back(std::move(slice));
  }
  return slices;
}

}  // namespace rwkvx
