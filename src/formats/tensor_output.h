#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/progress.h"
#include "formats/catalog.h"

namespace rwkvx {

/// Bytes of each tensor. Errors: two tensors of one name, none, or a shape too large for memory.
std::vector<uint64_t> checked_sizes(const Path& path, std::span<const TensorToWrite> tensors);

/// What the three writers share: the file under its temporary name and the bytes of tensors written so far.
class TensorOutput {
 public:
  TensorOutput(const Path& path, uint64_t total, const Progress& progress)
      : file(path), total_(total), progress_(progress) {}

  /// Asks for the tensor's data and checks that they are of the type and shape that were announced.
  static ConstView data_of(const TensorToWrite& tensor);
  /// In pieces, with progress behind each.
  void write_data(ConstView data);
  void write_zeros(uint64_t count);
  template <typename T>
  void write_number(T value) {
    file.write(std::as_bytes(std::span(&value, 1)));
  }

  AtomicFile file;

 private:
  uint64_t done_ = 0, total_;
  const Progress& progress_;
};

}  // namespace rwkvx
