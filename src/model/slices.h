#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/batch.h"

namespace rwkvx {

/// Rows of a batch that a training pass computes together. Blocks run slice by slice, forward in order and
/// backward in reverse, so that temporaries are as large as a slice and stay in the caches.
struct Slice {
  int64_t begin = 0, end = 0;    ///< rows of the batch
  std::vector<int64_t> offsets;  ///< of the slice's sequences, from 0
  size_t first_sequence = 0;
  bool begins_within = false;  ///< its first sequence began before it
  bool ends_within = false;    ///< its last sequence goes on behind it
  int64_t first_interval = 0;  ///< of Wkv7Call::kept of the whole batch

  int64_t rows() const { return end - begin; }
  size_t sequences() const { return offsets.size() - 1; }
  /// The slice's rows of a view of all of them.
  template <typename AnyView>
  AnyView of(const AnyView& all) const {
    return all.rows(begin, rows());
  }
  Batch batch(std::span<const uint8_t> resets) const {
    return {offsets, resets.empty()
                         ? resets
                         : resets.subspan(static_cast<size_t>(begin), static_cast<size_t>(rows()))};
  }
};

/// Slices of up to `rows` ≥ kWkv7Interval rows. A sequence is cut between two intervals of WKV-7, so that its
/// kept states are those of the sequence in one piece.
std::vector<Slice> slices_of(std::span<const int64_t> offsets, int64_t rows);

}  // namespace rwkvx
