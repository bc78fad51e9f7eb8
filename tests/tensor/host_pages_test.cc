#include "tensor/host_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <vector>

namespace rwkvx {
namespace {

/// Whether the page with `at` belongs to this process.
bool is_mapped(const std::byte* at) {
  const auto size = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  auto* const page = reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(at) / size * size);
  return ::msync(page, 1, MS_ASYNC) == 0;
}

TEST(HostPages, AreZerosWhereAHugePageBegins) {
  for (const size_t bytes : {size_t{1}, kHugePage - 1, kHugePage, kHugePage + 1, 5 * kHugePage + 12345}) {
    std::byte* const pages = map_pages(bytes, true);
    ASSERT_NE(pages, nullptr);
    if (bytes >= kHugePage) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(pages) % kHugePage, 0u) << bytes;
    }
    EXPECT_EQ(static_cast<size_t>(std::count(pages, pages + bytes, std::byte{0})), bytes);
    std::memset(pages, 1, bytes);
    EXPECT_TRUE(is_mapped(pages));
    unmap_pages(pages, bytes);
    EXPECT_FALSE(is_mapped(pages)) << bytes;
  }
}

TEST(HostPages, MoreThanThereIsIsNull) { EXPECT_EQ(map_pages(size_t{1} << 60, true), nullptr); }

TEST(SlabAllocator, GivesZeroedBlocksThatDoNotOverlap) {
  Allocator& slabs = slab_allocator();
  const std::vector<size_t> sizes{1, 64, 65, 100000, 3000000, 4194304, 4194305, 9000000};
  std::vector<std::pair<std::byte*, size_t>> blocks;
  for (int round = 0; round < 4; ++round) {
    for (const size_t size : sizes) {
      auto* const block = static_cast<std::byte*>(slabs.allocate(size));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0u);
      EXPECT_EQ(static_cast<size_t>(std::count(block, block + size, std::byte{0})), size);
      std::memset(block, round + 1, size);
      blocks.emplace_back(block, size);
    }
  }
  std::sort(blocks.begin(), blocks.end());
  for (size_t i = 0; i + 1 < blocks.size(); ++i) {
    EXPECT_LE(blocks[i].first + blocks[i].second, blocks[i + 1].first);
  }
  for (const auto& [block, size] : blocks) {
    EXPECT_EQ(static_cast<size_t>(std::count(block, block + size, block[0])), size);
    slabs.release(block, size);
  }
}

TEST(SlabAllocator, GivesMemoryBackWithTheLastBlockOfASlab) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "with AddressSanitizer blocks are single";
#endif
  constexpr size_t kSize = size_t{3} << 20;
  Allocator& slabs = slab_allocator();
  std::vector<std::byte*> blocks;
  for (int i = 0; i < 25; ++i) blocks.push_back(static_cast<std::byte*>(slabs.allocate(kSize)));
  for (size_t i = 0; i + 1 < blocks.size(); ++i) slabs.release(blocks[i], kSize);
  EXPECT_TRUE(is_mapped(blocks.back()));
  EXPECT_FALSE(is_mapped(blocks.front()));
  slabs.release(blocks.back(), kSize);
  EXPECT_FALSE(is_mapped(blocks.back()));
}

}  // namespace
}  // namespace rwkvx
