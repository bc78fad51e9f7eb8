#pragma once

#include <array>
#include <cstddef>
#include <memory_resource>

namespace rwkvx {

/// Memory for short lists (std::pmr::vector) that live no longer than this: `kBytes` of the stack, and only
/// beyond them the heap. Nothing is given back before the end: reserve() what a list needs.
template <size_t kBytes>
class StackMemory {
 public:
  StackMemory() = default;
  StackMemory(const StackMemory&) = delete;
  StackMemory& operator=(const StackMemory&) = delete;
  std::pmr::memory_resource* resource() { return &resource_; }

 private:
  alignas(std::max_align_t) std::array<std::byte, kBytes> bytes_;
  std::pmr::monotonic_buffer_resource resource_{bytes_.data(), bytes_.size()};
};

}  // namespace rwkvx
