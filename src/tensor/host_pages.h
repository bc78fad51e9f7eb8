#pragma once

#include <cstddef>

#include "tensor/buffer.h"

/// Host memory straight from the kernel, and in which pages. A processor finds some thousand pages without
/// a walk through tables, which is slow, and slower in a virtual machine: 8 MB in pages of 4 KB, all of a
/// model's weights in huge ones of 2 MB.
namespace rwkvx {

inline constexpr size_t kHugePage = size_t{2} << 20;

/// So many bytes, rounded up to whole pages of the system's usual size.
size_t whole_pages(size_t bytes);

/// Zeros. `huge` asks for huge pages where a whole one fits; they are then resident from their first touch
/// on. Null when out of memory.
std::byte* map_pages(size_t bytes, bool huge);
void unmap_pages(void* pages, size_t bytes) noexcept;

/// Never huge: for memory of which only parts are used for long, such as the keys of a chunk that fills
/// slowly.
Allocator& small_page_allocator();

/// Many blocks in common huge pages, for what is made and dropped together, such as a model's weights: memory
/// of a block goes back to the system only with its neighbours'.
Allocator& slab_allocator();

}  // namespace rwkvx
