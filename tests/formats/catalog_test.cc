#include "formats/catalog.h"

#include "file_builders.h"

namespace rwkvx {
namespace {

TEST(Catalog, TellsWhatIsNoModel) {
  EXPECT_REFUSED("", "is empty");
  EXPECT_REFUSED("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
                 "git-lfs pointer");
  EXPECT_REFUSED("<!DOCTYPE html>\n<html></html>", "web page");
  EXPECT_REFUSED("\n\n  <HTML><body>404</body>", "web page");
  EXPECT_REFUSED("\x80\x02\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "before PyTorch 1.6");
  EXPECT_REFUSED("fmgg e\1\0\0", "before GGUF");
  EXPECT_REFUSED("tjgg\3\1\1\1", "before GGUF");
  EXPECT_REFUSED("\x1f\x8b\x08 and so on", "unpack it first");
  EXPECT_REFUSED("{\"weight_map\": {}}", "JSON file");
  EXPECT_REFUSED("x", "starts with \"x\"");
  EXPECT_REFUSED(std::string(4096, '\0'), "neither a .pth (zip), nor safetensors, nor GGUF");
}

TEST(Catalog, MissingFilesAndFoldersAreNamed) {
  const TemporaryFolder folder;
  EXPECT_THAT([&] { open_catalog(folder / "absent.pth"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("absent.pth: No such file")));
  EXPECT_THAT([&] { open_catalog(folder.path()); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("is a directory")));
}

TEST(Catalog, NamesAreUnique) {
  Catalog catalog;
  catalog.path = kTestFile;
  const float value = 1;
  catalog.add("a", ConstView(&value, DType::f32, Shape{1}));
  catalog.add("b", ConstView(&value, DType::f32, Shape{1}));
  EXPECT_EQ(catalog.find("b"), &catalog.tensors()[1]);
  EXPECT_EQ(catalog.find("c"), nullptr);
  EXPECT_THAT(
      [&] { catalog.add("a", ConstView(&value, DType::f32, Shape{1})); },
      testing::ThrowsMessage<Error>(testing::HasSubstr("some-model.bin: tensor \"a\" is there twice")));
}

TEST(Catalog, MetadataOfTheWrongTypeIsNamed) {
  Catalog catalog;
  catalog.path = kTestFile;
  catalog.metadata = {{"text", std::string("x")},
                      {"unsigned", uint64_t{7}},
                      {"signed", int64_t{8}},
                      {"negative", int64_t{-1}},
                      {"fraction", 1.5}};
  EXPECT_EQ(*catalog.text("text"), "x");
  EXPECT_EQ(*catalog.number("unsigned"), 7u);
  EXPECT_EQ(*catalog.number("signed"), 8u);
  EXPECT_EQ(catalog.text("none"), nullptr);
  EXPECT_EQ(catalog.number("none"), nullptr);
  EXPECT_THAT([&] { catalog.text("unsigned"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("\"unsigned\" is a number")));
  EXPECT_THAT([&] { catalog.number("negative"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("negative (-1)")));
  EXPECT_THAT([&] { catalog.number("fraction"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("a fraction")));
}

}  // namespace
}  // namespace rwkvx
