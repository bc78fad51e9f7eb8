#pragma once

#include <cstddef>
#include <memory>

#include "tensor/view.h"

namespace rwkvx {

/// Where a backend's memory comes from. Blocks are at least 64-byte aligned.
class Allocator {
 public:
  virtual ~Allocator() = default;
  /// Errors: out of memory, with the size asked for. Contents are zero.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* block, size_t bytes) noexcept = 0;
};

/// Zeroed host memory. Large blocks come straight from the kernel in huge pages (host_pages.h), of which
/// those never touched cost nothing.
Allocator& host_allocator();

/// A tensor that owns its memory.
class Buffer {
 public:
  Buffer() = default;
  Buffer(DType dtype, Shape shape, Allocator& allocator = host_allocator());
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { reset(); }

  void reset() noexcept;
  size_t bytes() const { return bytes_; }
  View view() { return view_; }
  ConstView view() const { return view_; }
  operator View() { return view_; }
  operator ConstView() const { return view_; }
  template <typename T>
  T* as() {
    return view_.as<T>();
  }
  template <typename T>
  const T* as() const {
    return view_.as<T>();
  }
  explicit operator bool() const { return static_cast<bool>(view_); }

 private:
  View view_;
  size_t bytes_ = 0;
  Allocator* allocator_ = nullptr;
};

}  // namespace rwkvx
