#include "tensor/buffer.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "tensor/host_pages.h"

namespace rwkvx {
namespace {

constexpr size_t kMapFrom = size_t{1} << 20;

class HostAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    void* block = nullptr;
    if (bytes >= kMapFrom) {
      block = map_pages(bytes, true);
    } else {
      const size_t rounded = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
      block = std::aligned_alloc(64, rounded);
      if (block != nullptr) std::memset(block, 0, rounded);
    }
    if (block == nullptr) fail("out of memory: {} more bytes are needed", bytes);
    return block;
  }
  void release(void* block, size_t bytes) noexcept override {
    if (bytes >= kMapFrom) {
      unmap_pages(block, bytes);
    } else {
      std::free(block);
    }
  }
};

}  // namespace

Allocator& host_allocator() {
  static HostAllocator instance;
  return instance;
}

Buffer::Buffer(DType dtype, Shape shape, Allocator& allocator) : allocator_(&allocator) {
  const auto elements = checked_elements(shape.dims());
  const auto bytes = elements ? checked_bytes(dtype, *elements) : std::nullopt;
  if (!bytes) fail("a tensor of shape {} and type {} is too large", shape.str(), name(dtype));
  bytes_ = static_cast<size_t>(*bytes);
  view_ = View(allocator.allocate(bytes_), dtype, shape);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    reset();
    view_ = std::exchange(other.view_, View());
    bytes_ = std::exchange(other.bytes_, 0);
    allocator_ = std::exchange(other.allocator_, nullptr);
  }
  return *this;
}

void Buffer::reset() noexcept {
  if (view_) allocator_->release(view_.data(), bytes_);
  view_ = View();
  bytes_ = 0;
}

}  // namespace rwkvx
