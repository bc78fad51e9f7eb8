#pragma once

#include <vector>

#include "tensor/buffer.h"

namespace rwkvx {

/// Stack of temporary tensors. Memory is kept between uses, so that a forward pass repeated with sizes seen
/// before allocates nothing. Contents of a new tensor are unspecified.
class Arena {
 public:
  explicit Arena(Allocator& allocator) : allocator_(allocator) {}

  View take(DType dtype, Shape shape);

  /// Returns everything taken during its lifetime.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), block_(arena.block_), used_(arena.used_) {}
    ~Scope() { arena_.rewind(block_, used_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t block_, used_;
  };

  size_t reserved_bytes() const;

 private:
  void rewind(size_t block, size_t used);
  Allocator& allocator_;
  std::vector<Buffer> blocks_;
  size_t block_ = 0;  // index of the block in use
  size_t used_ = 0;   // bytes used of it
};

}  // namespace rwkvx
