#include "tensor/view.h"

#include <gtest/gtest.h>

#include <array>
#include <numeric>

namespace rwkvx {
namespace {

class ViewTest : public testing::Test {
 protected:
  void SetUp() override { std::iota(data_.begin(), data_.end(), 0.0f); }
  std::array<float, 12> data_;
  View view_{data_.data(), DType::f32, {3, 4}};
};

TEST_F(ViewTest, KnowsItsSize) {
  EXPECT_EQ(view_.elements(), 12);
  EXPECT_EQ(view_.bytes(), 48u);
  EXPECT_EQ(view_.raw().size(), 48u);
  EXPECT_EQ(view_.as<float>()[11], 11.0f);
  EXPECT_TRUE(view_);
  EXPECT_FALSE(View());
}

TEST_F(ViewTest, RowsShareTheMemory) {
  const View middle = view_.rows(1, 2);
  EXPECT_EQ(middle.shape(), (Shape{2, 4}));
  EXPECT_EQ(middle.as<float>()[0], 4.0f);
  middle.as<float>()[7] = -1.0f;
  EXPECT_EQ(data_[11], -1.0f);
  EXPECT_EQ(view_.rows(3, 0).elements(), 0);
}

TEST_F(ViewTest, RowsOfQuantisedTypesAreWholeBlocks) {
  std::array<std::byte, 136> blocks{};  // 2 rows of 2 blocks of 34 bytes
  const View q(blocks.data(), DType::q8_0, {2, 64});
  EXPECT_EQ(q.bytes(), blocks.size());
  EXPECT_EQ(q.rows(1, 1).data(), blocks.data() + 68);
}

TEST_F(ViewTest, RowsOfNothing) {
  const View none(data_.data(), DType::f32, {0, 4});
  EXPECT_EQ(none.rows(0, 0).data(), data_.data());
}

TEST_F(ViewTest, ReshapedKeepsTheElements) {
  const ConstView flat = view_.reshaped({12});
  EXPECT_EQ(flat.data(), data_.data());
  EXPECT_EQ(flat.shape(), Shape{12});
}

using ViewDeathTest = ViewTest;

TEST_F(ViewDeathTest, RefusesWhatIsNotThere) {
  EXPECT_DEATH(view_.rows(2, 2), "does not hold");
  EXPECT_DEATH(view_.rows(-1, 1), "does not hold");
  EXPECT_DEATH(view_.reshaped({3, 5}), "does not hold");
  EXPECT_DEATH(view_.as<double>(), "does not hold");
}

}  // namespace
}  // namespace rwkvx
