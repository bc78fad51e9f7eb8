#include "tensor/arena.h"

#include <algorithm>

namespace rwkvx {
namespace {
constexpr size_t kAlign = 64;
constexpr size_t kSmallestBlock = size_t{1} << 20;
}  // namespace

View Arena::take(DType dtype, Shape shape) {
  const size_t bytes = (bytes_of(dtype, shape.elements()) + kAlign - 1) / kAlign * kAlign;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes()) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    blocks_.emplace_back(DType::u8,
                         Shape{static_cast<int64_t>(std::max({bytes, kSmallestBlock, reserved_bytes()}))},
                         allocator_);
    used_ = 0;
  }
  View view(blocks_[block_].as<uint8_t>() + used_, dtype, shape);
  used_ += bytes;
  return view;
}

void Arena::rewind(size_t block, size_t used) {
  block_ = block;
  used_ = used;
}

size_t Arena::reserved_bytes() const {
  size_t total = 0;
  for (const Buffer& b : blocks_) total += b.bytes();
  return total;
}

}  // namespace rwkvx
