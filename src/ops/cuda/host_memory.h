#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <map>
#include <vector>

#include "tensor/buffer.h"

namespace rwkvx::cuda {

/// Memory of the host that kernels reach, through the bus: page-locked. Many small blocks of one size share a
/// slab, for the system has room for so many locked ranges only. Slabs of which all is free stay for blocks
/// to come, up to `most_kept` bytes, for locking takes 0.36 s a GB (docs/benchmarks/gpu.md); others go back.
/// Stream-ordered, as GpuAllocator: blocks may be released while kernels use them.
class HostMemory final : public Allocator {
 public:
  static constexpr size_t kMostKept = size_t{4} << 30;
  explicit HostMemory(cudaStream_t stream, size_t most_kept = kMostKept)
      : stream_(stream), most_kept_(most_kept) {}
  HostMemory(const HostMemory&) = delete;
  HostMemory& operator=(const HostMemory&) = delete;
  ~HostMemory() override;

  /// Errors: no memory that can be locked.
  void* allocate(size_t bytes) override;
  void release(void* block, size_t bytes) noexcept override;

  static constexpr size_t kSlabBytes = size_t{64} << 20;
  size_t kept_bytes() const { return kept_; }  ///< of slabs of which all is free

 private:
  struct Slab {
    std::byte* at = nullptr;
    size_t blocks = 0;
    std::vector<std::byte*> free;
  };
  using Slabs = std::map<const std::byte*, Slab>;  // by their beginnings

  Slab& slab_with_room(size_t bytes);
  void* lock(size_t bytes) noexcept;  // null: there is none
  void give_back(Slab& slab) noexcept;
  void give_back_kept() noexcept;

  cudaStream_t stream_;
  size_t most_kept_, kept_ = 0;
  std::map<size_t, Slabs> slabs_;  // by the size of their blocks
};

}  // namespace rwkvx::cuda
