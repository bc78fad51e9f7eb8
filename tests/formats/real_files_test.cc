// Files that Python and llama.cpp's converter wrote.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "formats/catalog.h"

namespace rwkvx {
namespace {

const Path kData = RWKVX_TEST_DATA;

TEST(RealFiles, PthAndSafetensorsOfOneModelAreEqual) {
  const Catalog pth = open_catalog(kData / "goldens/rwkvx/model.pth");
  const Catalog safetensors = open_catalog(kData / "goldens/rwkvx/model.safetensors");
  EXPECT_EQ(pth.format, FileFormat::pth);
  EXPECT_EQ(safetensors.format, FileFormat::safetensors);
  EXPECT_EQ(pth.tensors().size(), 80u);
  ASSERT_EQ(pth.tensors().size(), safetensors.tensors().size());
  for (const CatalogTensor& a : pth.tensors()) {
    const CatalogTensor* b = safetensors.find(a.name);
    ASSERT_NE(b, nullptr) << a.name;
    EXPECT_EQ(a.data.dtype(), b->data.dtype()) << a.name;
    ASSERT_EQ(a.data.shape(), b->data.shape()) << a.name;
    EXPECT_EQ(std::memcmp(a.data.data(), b->data.data(), a.data.bytes()), 0) << a.name;
  }
  const CatalogTensor* embedding = pth.find("rwkv.emb.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->data.shape(), (Shape{160, 128}));
  EXPECT_EQ(embedding->data.dtype(), DType::bf16);
}

TEST(RealFiles, GgufOfLlamaCpp) {
  const Catalog gguf = open_catalog(kData / "rwkv7-tiny-834k/model-f16.gguf");
  EXPECT_EQ(gguf.format, FileFormat::gguf);
  EXPECT_EQ(gguf.tensors().size(), 0x156u);
  ASSERT_NE(gguf.text("general.architecture"), nullptr);
  EXPECT_EQ(*gguf.text("general.architecture"), "rwkv7");
  ASSERT_NE(gguf.number("rwkv7.block_count"), nullptr);
  EXPECT_EQ(*gguf.number("rwkv7.block_count"), 12u);
  EXPECT_EQ(gguf.number("rwkv7.no_such_key"), nullptr);
  EXPECT_THAT(
      [&] { gguf.number("general.architecture"); },
      testing::ThrowsMessage<std::runtime_error>(testing::HasSubstr("is text instead of a whole number")));
  const CatalogTensor* embedding = gguf.find("token_embd.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->data.shape(), (Shape{256, 64}));
}

}  // namespace
}  // namespace rwkvx
