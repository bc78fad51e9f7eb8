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

/// Saved by tests/data/formats/torch_checkpoint.py: a state_dict beside an optimizer's state and numbers.
TEST(RealFiles, WhatTorchSavesOfViewsParametersAndTypes) {
  for (const char* file : {"torch-1.13.pth", "torch-2.3.pth"}) {
    const Catalog catalog = open_catalog(kData / "formats" / file);
    EXPECT_EQ(catalog.tensors().size(), 9u) << file;
    const auto floats = [&](std::string_view name, const Shape& shape) {
      const CatalogTensor* t = catalog.find(name);
      std::vector<float> out;
      EXPECT_NE(t, nullptr) << name;
      if (t == nullptr) return out;
      EXPECT_EQ(t->data.shape(), shape) << name;
      for (int64_t i = 0; i < t->data.elements(); ++i) {
        switch (t->data.dtype()) {
          case DType::f32:
            out.push_back(t->data.as<float>()[i]);
            break;
          case DType::f16:
            out.push_back(to_float(t->data.as<Float16>()[i]));
            break;
          case DType::bf16:
            out.push_back(to_float(t->data.as<BFloat16>()[i]));
            break;
          case DType::u8:
            out.push_back(t->data.as<uint8_t>()[i]);
            break;
          default:
            ADD_FAILURE() << name << " has another type";
        }
      }
      return out;
    };
    using testing::ElementsAre;
    EXPECT_THAT(floats("weight", Shape{2, 3}), ElementsAre(0, 1, 2, 3, 4, 5));
    EXPECT_THAT(floats("bias", Shape{2}), ElementsAre(10, 20));
    EXPECT_THAT(floats("transposed", Shape{3, 2}), ElementsAre(0, 3, 1, 4, 2, 5));
    EXPECT_THAT(floats("column", Shape{2}), ElementsAre(1, 4));
    EXPECT_THAT(floats("expanded", Shape{2, 3}), ElementsAre(1, 1, 1, 2, 2, 2));
    EXPECT_THAT(floats("parameter", Shape{2}), ElementsAre(0.5, -2));
    EXPECT_THAT(floats("half", Shape{2}), ElementsAre(1.5, 65504));
    EXPECT_THAT(floats("flags", Shape{3}), ElementsAre(1, 0, 1));
    ASSERT_NE(catalog.find("count"), nullptr);
    EXPECT_EQ(*catalog.find("count")->data.as<int64_t>(), int64_t{1} << 40);
  }
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
