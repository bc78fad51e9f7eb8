#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include "tensor/view.h"

namespace rwkvx {
namespace {

constexpr int kTypes = static_cast<int>(DType::q6_k) + 1;

TEST(DType, NamesAreFoundAgain) {
  for (int i = 0; i < kTypes; ++i) {
    const auto type = static_cast<DType>(i);
    EXPECT_EQ(dtype_named(name(type)), type) << name(type);
  }
  EXPECT_FALSE(dtype_named("F32"));
  EXPECT_FALSE(dtype_named(""));
}

// GGUF's blocks: scale and minimum in f16, quants of so many bits, for the k types also scales of sub-blocks.
TEST(DType, BlocksAddUp) {
  const auto bits = [](DType type) { return info(type).block_bytes * 8.0 / info(type).block_elements; };
  EXPECT_EQ(bits(DType::q4_0), 4 + 16 / 32.0);
  EXPECT_EQ(bits(DType::q4_1), 4 + 32 / 32.0);
  EXPECT_EQ(bits(DType::q5_0), 5 + 16 / 32.0);
  EXPECT_EQ(bits(DType::q5_1), 5 + 32 / 32.0);
  EXPECT_EQ(bits(DType::q8_0), 8 + 16 / 32.0);
  EXPECT_EQ(bits(DType::q2_k), 2 + (16 * 8 + 32) / 256.0);
  EXPECT_EQ(bits(DType::q3_k), 3 + (12 * 8 + 16) / 256.0);
  EXPECT_EQ(bits(DType::q4_k), 4 + (12 * 8 + 32) / 256.0);
  EXPECT_EQ(bits(DType::q5_k), 5 + (12 * 8 + 32) / 256.0);
  EXPECT_EQ(bits(DType::q6_k), 6 + (16 * 8 + 16) / 256.0);
}

TEST(DType, Classes) {
  for (int i = 0; i < kTypes; ++i) {
    const auto type = static_cast<DType>(i);
    EXPECT_EQ(is_quantised(type), name(type).front() == 'q') << name(type);
    EXPECT_EQ(is_float(type), name(type).find('f') != std::string_view::npos) << name(type);
  }
}

template <typename T>
class TypedDType : public testing::Test {};
using Types = testing::Types<float, double, BFloat16, Float16, int8_t, uint8_t, int16_t, int32_t, int64_t>;
TYPED_TEST_SUITE(TypedDType, Types);

TYPED_TEST(TypedDType, SizesAreThoseOfTheTypes) {
  EXPECT_EQ(info(DTypeOf<TypeParam>::value).block_bytes, sizeof(TypeParam));
}

}  // namespace
}  // namespace rwkvx
