#include "ops/cuda/host_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <vector>

namespace rwkvx::cuda {
namespace {

bool is_zero(const void* block, size_t bytes) {
  const auto* const at = static_cast<const unsigned char*>(block);
  return std::all_of(at, at + bytes, [](unsigned char byte) { return byte == 0; });
}

/// Blocks that come and go in any order are apart, aligned, and zero when they come.
TEST(HostMemory, BlocksAreApartAndZero) {
  struct Block {
    unsigned char* at;
    size_t bytes;
    unsigned char mark;
  };
  HostMemory memory(nullptr);
  std::vector<Block> blocks;
  std::mt19937 random(1);
  const auto expect_whole = [](const Block& block) {
    EXPECT_EQ(block.at[0], block.mark);
    EXPECT_EQ(block.at[block.bytes - 1], block.mark);
  };
  const std::vector<size_t> sizes{1,
                                  256,
                                  257,
                                  HostMemory::kSlabBytes / 600,
                                  100'000,
                                  HostMemory::kSlabBytes / 2,
                                  HostMemory::kSlabBytes + 1};
  for (size_t step = 0; step < 600; ++step) {
    if (!blocks.empty() && random() % 2 == 0) {
      const auto chosen = blocks.begin() + static_cast<std::ptrdiff_t>(random() % blocks.size());
      expect_whole(*chosen);
      memory.release(chosen->at, chosen->bytes);
      blocks.erase(chosen);
      continue;
    }
    const size_t bytes = step % 50 == 0 ? sizes[step / 50 % sizes.size()] : sizes[random() % 5];
    auto* const at = static_cast<unsigned char*>(memory.allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % 64, 0u);
    EXPECT_TRUE(is_zero(at, bytes));
    const auto mark = static_cast<unsigned char>(1 + random() % 255);
    std::memset(at, mark, bytes);
    blocks.push_back({at, bytes, mark});
  }
  for (const Block& block : blocks) {
    expect_whole(block);
    memory.release(block.at, block.bytes);
  }
}

TEST(HostMemory, BlocksOfASizeShareASlab) {
  constexpr size_t kBytes = 4096, kBlocks = HostMemory::kSlabBytes / kBytes;
  HostMemory memory(nullptr);
  std::set<std::byte*> blocks;
  for (size_t i = 0; i < kBlocks; ++i) blocks.insert(static_cast<std::byte*>(memory.allocate(kBytes)));
  EXPECT_EQ(blocks.size(), kBlocks);
  EXPECT_EQ(*blocks.rbegin() - *blocks.begin(), static_cast<std::ptrdiff_t>((kBlocks - 1) * kBytes));
  for (std::byte* block : blocks) memory.release(block, kBytes);
}

TEST(HostMemory, FreeSlabsStayForBlocksToCome) {
  constexpr size_t kBytes = HostMemory::kSlabBytes;
  HostMemory memory(nullptr, 2 * kBytes);
  std::vector<void*> blocks;
  for (int i = 0; i < 3; ++i) blocks.push_back(memory.allocate(kBytes));
  EXPECT_EQ(memory.kept_bytes(), 0u);
  for (void* block : blocks) memory.release(block, kBytes);
  EXPECT_EQ(memory.kept_bytes(), 2 * kBytes);
  const std::set<void*> known(blocks.begin(), blocks.end());
  void* const first = memory.allocate(kBytes);
  void* const second = memory.allocate(kBytes);
  EXPECT_TRUE(known.contains(first));
  EXPECT_TRUE(known.contains(second));
  EXPECT_NE(first, second);
  EXPECT_TRUE(is_zero(first, kBytes));
  EXPECT_EQ(memory.kept_bytes(), 0u);
  memory.release(first, kBytes);
  void* const other = memory.allocate(kBytes / 2);  // another size, another slab
  EXPECT_EQ(memory.kept_bytes(), kBytes);
  memory.release(other, kBytes / 2);
  EXPECT_EQ(memory.kept_bytes(), 2 * kBytes);
  memory.release(second, kBytes);
  EXPECT_EQ(memory.kept_bytes(), 2 * kBytes);
}

TEST(HostMemory, NoMemoryGivesBackWhatIsKept) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "AddressSanitizer ends the process where there is no memory";
#endif
  HostMemory memory(nullptr);
  memory.release(memory.allocate(1), 1);
  EXPECT_GT(memory.kept_bytes(), 0u);
  EXPECT_ANY_THROW(memory.allocate(size_t{1} << 60));
  EXPECT_EQ(memory.kept_bytes(), 0u);
  EXPECT_TRUE(is_zero(memory.allocate(100), 100));
}

}  // namespace
}  // namespace rwkvx::cuda
