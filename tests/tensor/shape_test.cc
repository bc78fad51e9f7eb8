#include "tensor/shape.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace rwkvx {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();

std::optional<int64_t> elements(std::vector<int64_t> dims) { return checked_elements(dims); }

TEST(Shape, Dimensions) {
  const Shape shape{2, 3, 64};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape[1], 3);
  EXPECT_EQ(shape.dim(-1), 64);
  EXPECT_EQ(shape.dim(-3), 2);
  EXPECT_EQ(shape.elements(), 384);
  EXPECT_EQ(shape.str(), "[2, 3, 64]");
}

TEST(Shape, AScalarHasOneElement) {
  EXPECT_EQ(Shape().rank(), 0);
  EXPECT_EQ(Shape().elements(), 1);
  EXPECT_EQ(Shape().str(), "[]");
}

TEST(Shape, Equality) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2}) == (Shape{2, 0}));  // the unused dimensions are zero too
  EXPECT_FALSE(Shape() == Shape{1});
}

TEST(ShapeDeathTest, FiveDimensionsAreTooMany) {
  const std::vector<int64_t> dims(5, 1);
  EXPECT_DEATH(Shape{std::span(dims)}, "kMaxRank");
}

TEST(CheckedElements, Multiplies) {
  EXPECT_EQ(elements({}), 1);
  EXPECT_EQ(elements({7}), 7);
  EXPECT_EQ(elements({65536, 2560}), 65536 * 2560);
  EXPECT_EQ(elements({int64_t{1} << 31, int64_t{1} << 31}), int64_t{1} << 62);
}

TEST(CheckedElements, RefusesWhatDoesNotFit) {
  EXPECT_FALSE(elements({-1}));
  EXPECT_FALSE(elements({-2, -3}));
  EXPECT_FALSE(elements({kMax}));
  EXPECT_FALSE(elements({int64_t{1} << 32, int64_t{1} << 31}));
  EXPECT_FALSE(elements({int64_t{1} << 32, int64_t{1} << 32}));  // 0 modulo 2^64
  EXPECT_FALSE(elements({3, 6148914691236517206}));              // 2 modulo 2^64
  EXPECT_FALSE(elements({kMax, kMax, kMax}));
}

TEST(CheckedElements, AZeroDoesNotHideOverflow) {
  EXPECT_EQ(elements({0, 5}), 0);
  EXPECT_EQ(elements({5, 0}), 0);
  EXPECT_FALSE(elements({0, -1}));
  EXPECT_FALSE(elements({0, kMax, kMax}));
  EXPECT_FALSE(elements({kMax, kMax, 0}));
}

TEST(CheckedBytes, CountsWholeBlocks) {
  EXPECT_EQ(checked_bytes(DType::f32, 10), 40u);
  EXPECT_EQ(checked_bytes(DType::bf16, 0), 0u);
  EXPECT_EQ(checked_bytes(DType::q4_0, 64), 36u);
  EXPECT_EQ(checked_bytes(DType::q6_k, 256), 210u);
  EXPECT_FALSE(checked_bytes(DType::q4_0, 33));
  EXPECT_FALSE(checked_bytes(DType::q6_k, 32));
  EXPECT_FALSE(checked_bytes(DType::f32, -1));
  EXPECT_FALSE(checked_bytes(DType::f64, int64_t{1} << 61));
}

}  // namespace
}  // namespace rwkvx
