// Decoding must not allocate: a token's time would depend on the allocator, and on other threads that use it.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "model/support.h"
#include "runtime/session.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

void* counted(size_t bytes, size_t alignment) {
  if (counting) ++allocations;
  void* const memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return counted(bytes, alignof(std::max_align_t)); }
void* operator new(size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<size_t>(alignment));
}
// Inlined, GCC would take them for mistakes (-Wmismatched-new-delete).
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace rwkvx {
namespace {

class AllocationTest : public testing::TestWithParam<Precision> {};

TEST_P(AllocationTest, TokensAllocateNothing) {
  constexpr int kChunk = 64;  // of the model; a new chunk of keys takes memory
  Session session(test::open_model(test::models("rwkvx-proto-1.3m.gguf"), "cpu", GetParam()));
  session.append(test::random_tokens(3 * kChunk, 256, 1));
  session.logits();
  const auto decode = [&](int count) {
    for (int i = 0; i < count; ++i) {
      session.append(static_cast<int32_t>(i));
      session.logits();
    }
  };
  decode(8);  // work space grows to what a token needs
  allocations = 0;
  counting = true;
  decode(kChunk - 9);
  counting = false;
  EXPECT_EQ(allocations, 0);
  counting = true;
  decode(2 * kChunk);
  counting = false;
  EXPECT_GT(allocations, 0);  // chunks of keys
}

INSTANTIATE_TEST_SUITE_P(Precisions, AllocationTest, testing::Values(Precision::f32, Precision::bf16),
                         [](const auto& one) { return "cpu_" + std::string(name(one.param)); });

}  // namespace
}  // namespace rwkvx
