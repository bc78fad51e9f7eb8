#pragma once

#include "tensor/buffer.h"

namespace rwkvx::cpu {

/// Working memory that grows to the largest size asked for and keeps it. Contents are unspecified.
class Scratch {
 public:
  template <typename T>
  T* take(int64_t count) {
    const auto bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > size_) {
      buffer_.reset();  // before the new one is there: they may be large
      buffer_ = Buffer(DType::u8, Shape{bytes});
      size_ = bytes;
    }
    return static_cast<T*>(buffer_.view().data());
  }

 private:
  Buffer buffer_;
  int64_t size_ = 0;
};

}  // namespace rwkvx::cpu
