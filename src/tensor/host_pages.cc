#include "tensor/host_pages.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>

#include "base/error.h"

namespace rwkvx {
namespace {

size_t rounded(size_t bytes, size_t unit) { return (std::max<size_t>(bytes, 1) + unit - 1) / unit * unit; }

std::byte* map(size_t bytes) {
  void* pages = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<std::byte*>(pages);
}

std::byte* mapped_or_failed(size_t bytes, bool huge) {
  std::byte* pages = map_pages(bytes, huge);
  if (pages == nullptr) fail("out of memory: {} more bytes are needed", bytes);
  return pages;
}

class SmallPageAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override { return mapped_or_failed(bytes, false); }
  void release(void* block, size_t bytes) noexcept override { unmap_pages(block, bytes); }
};

class SlabAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    const size_t size = rounded(bytes, kAlignment);
    if (size > kMostInSlab) return mapped_or_failed(bytes, true);
    const std::lock_guard lock(mutex_);
    if (current_ == nullptr || current_used_ + size > kSlab) {
      std::byte* const slab = mapped_or_failed(kSlab, true);
      blocks_[slab] = 0;
      current_ = slab;
      current_used_ = 0;
    }
    std::byte* const block = current_ + current_used_;
    current_used_ += size;
    ++blocks_[current_];
    return block;
  }
  void release(void* block, size_t bytes) noexcept override {
    if (rounded(bytes, kAlignment) > kMostInSlab) return unmap_pages(block, bytes);
    const std::lock_guard lock(mutex_);
    const auto slab = std::prev(blocks_.upper_bound(static_cast<std::byte*>(block)));
    if (--slab->second > 0) return;
    if (slab->first == current_) current_ = nullptr;
    unmap_pages(slab->first, kSlab);
    blocks_.erase(slab);
  }

 private:
  static constexpr size_t kAlignment = 64, kSlab = size_t{32} << 20, kMostInSlab = kSlab / 8;
  std::mutex mutex_;
  std::map<std::byte*, size_t> blocks_;  // in each slab
  std::byte* current_ = nullptr;         // new blocks come from it
  size_t current_used_ = 0;
};

}  // namespace

size_t whole_pages(size_t bytes) {
  static const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return rounded(bytes, page);
}

std::byte* map_pages(size_t bytes, bool huge) {
  bytes = whole_pages(bytes);
  if (!huge || bytes < kHugePage) return map(bytes);
  std::byte* const pages = map(bytes + kHugePage);
  if (pages == nullptr) return nullptr;
  const auto before =
      rounded(reinterpret_cast<uintptr_t>(pages), kHugePage) - reinterpret_cast<uintptr_t>(pages);
  std::byte* const aligned = pages + before;
  if (before > 0) (void)::munmap(pages, before);
  if (before < kHugePage) (void)::munmap(aligned + bytes, kHugePage - before);
#ifdef MADV_HUGEPAGE
  (void)::madvise(aligned, bytes, MADV_HUGEPAGE);  // refused where a kernel has none: small ones then
#endif
  return aligned;
}

void unmap_pages(void* pages, size_t bytes) noexcept { (void)::munmap(pages, whole_pages(bytes)); }

Allocator& small_page_allocator() {
  static SmallPageAllocator instance;
  return instance;
}

Allocator& slab_allocator() {
#ifdef __SANITIZE_ADDRESS__
  return host_allocator();  // which lets reads beyond a block be found
#endif
  static auto* const instance = new SlabAllocator;  // outlives what other static objects hold
  return *instance;
}

}  // namespace rwkvx
