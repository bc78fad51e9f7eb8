// Quantised blocks against the Python package that ggml's authors wrote:
// tests/data/formats/quantised_blocks.py.
#include <gtest/gtest.h>

#include <cstring>

#include "formats/catalog.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

class QuantisedTest : public testing::Test {
 protected:
  ConstView tensor(const std::string& name) const {
    const CatalogTensor* found = catalog_.find(name);
    EXPECT_NE(found, nullptr) << name;
    return found->data;
  }
  const Catalog catalog_ = open_catalog(Path(RWKVX_TEST_DATA) / "formats/quantised_blocks.safetensors");
};

TEST_F(QuantisedTest, ValuesAreThoseOfGgmlBitForBit) {
  for (const DType type : {DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k, DType::q6_k}) {
    const std::string type_name(name(type));
    const ConstView blocks = tensor(type_name + ".blocks"), values = tensor(type_name + ".values");
    std::vector<float> got(static_cast<size_t>(values.elements()));
    ASSERT_EQ(blocks.bytes(), bytes_of(type, values.elements()));
    dequantise(blocks.data(), type, got.data(), values.elements());
    EXPECT_EQ(std::memcmp(got.data(), values.data(), values.bytes()), 0) << type_name;
  }
}

TEST_F(QuantisedTest, BlocksAreThoseOfGgmlBitForBit) {
  const ConstView values = tensor("values");
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    const ConstView blocks = tensor(std::string(name(type)));
    std::vector<uint8_t> got(bytes_of(type, values.elements()));
    ASSERT_EQ(blocks.bytes(), got.size());
    quantise(values.as<float>(), type, got.data(), values.elements());
    int wrong = 0;
    for (size_t i = 0; i < got.size(); ++i) wrong += got[i] != blocks.as<uint8_t>()[i];
    EXPECT_EQ(wrong, 0) << name(type);
  }
}

}  // namespace
}  // namespace rwkvx
