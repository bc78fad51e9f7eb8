#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "base/file.h"

namespace rwkvx {

/// CRC-32C (Castagnoli).
uint32_t crc32c(std::span<const std::byte> bytes);

/// What TensorBoard reads: a file of records (length, masked CRC-32C of the length, data, masked CRC-32C of
/// the data), each a protobuf `Event` (tensorflow/core/util/event.proto). Appended to and flushed record by
/// record; a cut last record is skipped by readers.
class EventFile {
 public:
  /// Creates events.out.tfevents.<time>.<process> in `folder`. `from_step` > 0: the run is resumed there, and
  /// TensorBoard forgets what an earlier file says of that step and later ones.
  EventFile(const Path& folder, int64_t from_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  using Scalar = std::pair<std::string, double>;
  void add(int64_t step, std::span<const Scalar> scalars);

 private:
  void write(const std::string& event);
  Path path_;
  std::FILE* file_;
};

}  // namespace rwkvx
