#include "tensor/arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace rwkvx {
namespace {

/// What a forward pass might take: `scale` rows, some tensors for its whole length, some for a part.
std::vector<void*> pass(Arena& arena, int64_t scale) {
  std::vector<void*> taken;
  const Arena::Scope whole(arena);
  taken.push_back(arena.take(DType::f32, {scale, 64}).data());
  for (int layer = 0; layer < 3; ++layer) {
    const Arena::Scope one(arena);
    for (const int64_t width : {1, 64, 256, 100000}) {
      taken.push_back(arena.take(DType::f32, {scale, width}).data());
    }
  }
  taken.push_back(arena.take(DType::bf16, {scale, 7}).data());
  return taken;
}

TEST(Arena, TakesWithoutOverlap) {
  Arena arena(host_allocator());
  std::vector<View> views;
  for (const int64_t n : {1, 63, 64, 65, 4096, 300000, 5, 2000000, 17})
    views.push_back(arena.take(DType::f32, {n}));
  for (size_t i = 0; i < views.size(); ++i)
    std::memset(views[i].data(), static_cast<int>(i + 1), views[i].bytes());
  for (size_t i = 0; i < views.size(); ++i) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(views[i].data()) % 64, 0u);
    for (const std::byte b : views[i].raw()) ASSERT_EQ(static_cast<size_t>(b), i + 1);
  }
}

TEST(Arena, ASecondPassTakesTheSameMemory) {
  Arena arena(host_allocator());
  const auto first = pass(arena, 5);
  const size_t reserved = arena.reserved_bytes();
  EXPECT_EQ(pass(arena, 5), first);
  EXPECT_EQ(arena.reserved_bytes(), reserved);
}

TEST(Arena, AShorterPassAllocatesNothing) {
  Arena arena(host_allocator());
  pass(arena, 40);
  const size_t reserved = arena.reserved_bytes();
  pass(arena, 1);
  pass(arena, 40);
  EXPECT_EQ(arena.reserved_bytes(), reserved);
}

TEST(Arena, ScopesGiveBackInReverse) {
  Arena arena(host_allocator());
  const Arena::Scope outer(arena);
  arena.take(DType::f32, {10});
  void* inside;
  {
    const Arena::Scope inner(arena);
    inside = arena.take(DType::f32, {10}).data();
  }
  EXPECT_EQ(arena.take(DType::f32, {10}).data(), inside);
}

}  // namespace
}  // namespace rwkvx
