#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <vector>

#include "tensor/buffer.h"

namespace rwkvx::cuda {

/// Memory of the host that kernels reach, through the bus: page-locked. Many small blocks of one size share a
/// slab, for the system has room for so many locked ranges only; a slab goes back when all of it is free.
/// Stream-ordered, as GpuAllocator: blocks may be released while kernels use them.
class HostMemory final : public Allocator {
 public:
  explicit HostMemory(cudaStream_t stream) : stream_(stream) {}
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory() override;

  /// Errors: no memory that can be locked.
  void* allocate(size_t bytes) override;
  void release(void* block, size_t bytes) noexcept override;

  static constexpr size_t kSlabBytes = size_t{64} << 20;

 private:
  struct Slab {
    std::byte* at = nullptr;
    size_t blocks = 0;
    std::vector<std::byte*> free;
  };
  using Slabs = std::map<const std::byte*, Slab>;  // by their beginnings

  Slab& slab_with_room(size_t bytes);

  cudaStream_t stream_;
  std::map<size_t, Slabs> slabs_;  // by the size of their blocks
};

}  // namespace rwkvx::cuda
