#include "tensor/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace rwkvx {
namespace {

/// A 16-bit float by definition: one sign bit, E exponent bits, M mantissa bits.
template <int E, int M>
double value_of(uint16_t bits) {
  const int exponent = (bits >> M) & ((1 << E) - 1), mantissa = bits & ((1 << M) - 1);
  constexpr int bias = (1 << (E - 1)) - 1;
  double value;
  if (exponent == (1 << E) - 1) {
    value =
        mantissa == 0 ? std::numeric_limits<double>::infinity() : std::numeric_limits<double>::quiet_NaN();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - bias - M);
  } else {
    value = std::ldexp((1 << M) + mantissa, exponent - bias - M);
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

struct Bf16 {
  using Type = BFloat16;
  static constexpr int kExponent = 8, kMantissa = 7;
  static Type from(float x) { return to_bfloat16(x); }
};
struct F16 {
  using Type = Float16;
  static constexpr int kExponent = 5, kMantissa = 10;
  static Type from(float x) { return to_float16(x); }
};

template <typename Format>
class Half : public testing::Test {
 protected:
  static double value(uint16_t bits) { return value_of<Format::kExponent, Format::kMantissa>(bits); }
  static uint16_t bits(float x) { return Format::from(x).bits; }
  static constexpr uint16_t kInfinity = ((1 << Format::kExponent) - 1) << Format::kMantissa;
};
using Formats = testing::Types<Bf16, F16>;
TYPED_TEST_SUITE(Half, Formats);

TYPED_TEST(Half, EveryValueIsExactInFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const double expected = this->value(bits);
    const float actual = to_float(typename TypeParam::Type{bits});
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(actual)) << i;
    } else {
      ASSERT_EQ(actual, expected) << i;
      ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << i;
    }
  }
}

TYPED_TEST(Half, EveryValueSurvivesTheWayThroughFloat) {
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    const uint16_t back = this->bits(to_float(typename TypeParam::Type{bits}));
    if (std::isnan(this->value(bits))) {
      ASSERT_TRUE(std::isnan(this->value(back))) << i;
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

// Between two neighbours, the midpoint goes to the even one and everything else to the nearer one. For the
// largest finite value, the neighbour is where the next exponent would begin: from the midpoint on, infinity.
TYPED_TEST(Half, RoundsToNearestEven) {
  for (uint32_t i = 0; i < this->kInfinity; ++i) {
    const auto low = static_cast<uint16_t>(i), high = static_cast<uint16_t>(i + 1);
    const double below = this->value(low);
    const double above = high == this->kInfinity ? std::ldexp(1.0, std::ilogb(below) + 1) : this->value(high);
    const double exact_middle = (below + above) / 2;
    const auto middle = static_cast<float>(exact_middle);
    ASSERT_EQ(middle, exact_middle);
    const uint16_t even = low % 2 == 0 ? low : high;
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float sign : {1.0f, -1.0f}) {
      const uint16_t sign_bit = sign < 0 ? 0x8000 : 0;
      ASSERT_EQ(this->bits(sign * middle), even | sign_bit) << i;
      ASSERT_EQ(this->bits(sign * std::nextafter(middle, 0.0f)), low | sign_bit) << i;
      ASSERT_EQ(this->bits(sign * std::nextafter(middle, infinity)), high | sign_bit) << i;
    }
  }
}

TYPED_TEST(Half, FarOutIsInfinityAndNearZeroIsZero) {
  const float huge = std::numeric_limits<float>::max(), infinity = std::numeric_limits<float>::infinity();
  const float tiny = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(this->bits(huge), this->kInfinity);
  EXPECT_EQ(this->bits(-huge), this->kInfinity | 0x8000);
  EXPECT_EQ(this->bits(infinity), this->kInfinity);
  EXPECT_EQ(this->bits(-infinity), this->kInfinity | 0x8000);
  EXPECT_EQ(this->bits(tiny), 0);
  EXPECT_EQ(this->bits(-tiny), 0x8000);
  EXPECT_EQ(this->bits(-0.0f), 0x8000);
}

// A NaN whose set mantissa bits are all cut off must not become infinity.
TYPED_TEST(Half, NanStaysNan) {
  for (const uint32_t pattern :
       {0x7fc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu, 0xffffffffu, 0x7f801000u}) {
    const auto nan = std::bit_cast<float>(pattern);
    EXPECT_TRUE(std::isnan(this->value(this->bits(nan)))) << std::hex << pattern;
    EXPECT_EQ(this->bits(nan) >> 15, pattern >> 31) << std::hex << pattern;
  }
}

}  // namespace
}  // namespace rwkvx
