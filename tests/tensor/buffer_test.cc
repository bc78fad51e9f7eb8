#include "tensor/buffer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>

#include "base/error.h"

namespace rwkvx {
namespace {

/// Counts what is alive; fails the test on a block that is given back twice or with another size.
class CountingAllocator final : public Allocator {
 public:
  void* allocate(size_t bytes) override {
    void* block = host_allocator().allocate(bytes);
    alive_[block] = bytes;
    return block;
  }
  void release(void* block, size_t bytes) noexcept override {
    const auto found = alive_.find(block);
    EXPECT_TRUE(found != alive_.end() && found->second == bytes);
    if (found != alive_.end()) alive_.erase(found);
    host_allocator().release(block, bytes);
  }
  size_t alive() const { return alive_.size(); }

 private:
  std::map<void*, size_t> alive_;
};

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

TEST(Buffer, IsZeroedAndAligned) {
  for (const int64_t n : {1, 100, 262144, 262145, 1000000}) {  // small blocks, and from 1 MiB on pages
    Buffer buffer(DType::f32, {n});
    EXPECT_TRUE(aligned(buffer.view().data()));
    EXPECT_EQ(std::count(buffer.as<float>(), buffer.as<float>() + n, 0.0f), n);
    std::fill_n(buffer.as<float>(), n, 1.0f);
  }
}

TEST(Buffer, OfNoElementsIsThere) {
  const Buffer buffer(DType::f32, {0, 64});
  EXPECT_TRUE(buffer);
  EXPECT_EQ(buffer.view().elements(), 0);
  EXPECT_FALSE(Buffer());
}

TEST(Buffer, GivesItsMemoryBackOnce) {
  CountingAllocator allocator;
  {
    Buffer a(DType::u8, {100}, allocator), b(DType::u8, {3000000}, allocator);
    EXPECT_EQ(allocator.alive(), 2u);
    Buffer moved = std::move(a);
    EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): that it is empty now is the point
    EXPECT_EQ(moved.view().elements(), 100);
    moved = std::move(b);
    EXPECT_EQ(allocator.alive(), 1u);
    EXPECT_EQ(moved.view().elements(), 3000000);
    Buffer& self = moved;
    moved = std::move(self);
    EXPECT_EQ(moved.view().elements(), 3000000);
    moved.reset();
    EXPECT_EQ(allocator.alive(), 0u);
    moved.reset();
  }
  EXPECT_EQ(allocator.alive(), 0u);
}

TEST(Buffer, TooLargeIsAnErrorThatNamesTheShape) {
  const int64_t huge = int64_t{1} << 40;
  try {
    const Buffer buffer(DType::f32, {huge, huge});
    FAIL() << "allocated";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), testing::HasSubstr("[1099511627776, 1099511627776]"));
  }
  // More than the address space, less than 2^64 bytes.
  EXPECT_THROW(Buffer(DType::u8, {int64_t{1} << 60}), Error);
}

}  // namespace
}  // namespace rwkvx
