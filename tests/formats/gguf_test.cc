#include "file_builders.h"
#include "formats/gguf_types.h"

namespace rwkvx {
namespace {

constexpr uint32_t kF32 = 0;

/// One tensor "a" [2, 4] of floats, 32 bytes.
GgufBuilder valid() {
  GgufBuilder b;
  b.tensor("a", {4, 2}, kF32, 0).data = std::string(32, '\1');
  return b;
}
GgufBuilder with_tensor(const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset = 0) {
  GgufBuilder b;
  b.tensor("a", dims, type, offset).data = std::string(32, '\1');
  return b;
}
std::string with_array(uint32_t type, uint64_t count, const std::string& contents) {
  GgufBuilder b = valid();
  b.key("list", 9).metadata.number<uint32_t>(type).number<uint64_t>(count).raw(contents);
  return b.finish();
}

TEST(Gguf, ReadsEveryMetadataType) {
  for (uint32_t version : {2u, 3u}) {
    GgufBuilder b = valid();
    b.version = version;
    b.key("u8", 0).metadata.number<uint8_t>(200);
    b.key("i8", 1).metadata.number<int8_t>(-100);
    b.key("u16", 2).metadata.number<uint16_t>(60000);
    b.key("i16", 3).metadata.number<int16_t>(-30000);
    b.key("u32", 4).metadata.number<uint32_t>(4000000000u);
    b.key("i32", 5).metadata.number<int32_t>(-2000000000);
    b.key("f32", 6).metadata.number<float>(1.5f);
    b.key("bool", 7).metadata.number<uint8_t>(1);
    b.key("text", 8).metadata.number<uint64_t>(3).raw(std::string_view("a\0b", 3));
    b.key("u64", 10).metadata.number<uint64_t>(UINT64_MAX);
    b.key("i64", 11).metadata.number<int64_t>(INT64_MIN);
    b.key("f64", 12).metadata.number<double>(2.5);
    const Catalog c = parse_gguf(in_memory(b.finish()));
    EXPECT_EQ(c.metadata.at("u8"), MetadataValue(uint64_t{200}));
    EXPECT_EQ(c.metadata.at("i8"), MetadataValue(int64_t{-100}));
    EXPECT_EQ(c.metadata.at("u16"), MetadataValue(uint64_t{60000}));
    EXPECT_EQ(c.metadata.at("i16"), MetadataValue(int64_t{-30000}));
    EXPECT_EQ(c.metadata.at("u32"), MetadataValue(uint64_t{4000000000u}));
    EXPECT_EQ(c.metadata.at("i32"), MetadataValue(int64_t{-2000000000}));
    EXPECT_EQ(c.metadata.at("f32"), MetadataValue(1.5));
    EXPECT_EQ(c.metadata.at("bool"), MetadataValue(true));
    EXPECT_EQ(c.metadata.at("text"), MetadataValue(std::string("a\0b", 3)));
    EXPECT_EQ(c.metadata.at("u64"), MetadataValue(UINT64_MAX));
    EXPECT_EQ(c.metadata.at("i64"), MetadataValue(INT64_MIN));
    EXPECT_EQ(c.metadata.at("f64"), MetadataValue(2.5));
    EXPECT_EQ(c.tensors()[0].data.shape(), (Shape{2, 4}));
  }
}

TEST(Gguf, ReadsArrays) {
  const auto list = [](const std::string& file) { return parse_gguf(in_memory(file)).metadata.at("list"); };
  using Whole = std::vector<int64_t>;
  EXPECT_EQ(list(with_array(0, 2, "\1\xff")), MetadataValue(Whole{1, 255}));
  EXPECT_EQ(list(with_array(1, 2, "\1\xff")), MetadataValue(Whole{1, -1}));
  EXPECT_EQ(list(with_array(3, 1, "\xfe\xff")), MetadataValue(Whole{-2}));
  EXPECT_EQ(list(with_array(5, 1, "\xfd\xff\xff\xff")), MetadataValue(Whole{-3}));
  EXPECT_EQ(list(with_array(7, 2, std::string("\1\0", 2))), MetadataValue(Whole{1, 0}));
  EXPECT_EQ(list(with_array(6, 1, std::string("\0\0\x80\x3f", 4))), MetadataValue(std::vector<double>{1.0}));
  EXPECT_EQ(list(with_array(8, 0, "")), MetadataValue(std::vector<std::string>{}));
  EXPECT_EQ(list(with_array(8, 2, Bytes().number<uint64_t>(1).raw("x").number<uint64_t>(0))),
            MetadataValue(std::vector<std::string>{"x", ""}));
}

TEST(Gguf, ReadsQuantisedTensorsAndOtherAlignments) {
  GgufBuilder b;
  b.alignment = 64;
  b.key("general.alignment", 4).metadata.number<uint32_t>(64);
  b.tensor("q8", {32, 2}, 8, 0).tensor("half", {3}, 1, 128).tensor("none", {0}, kF32, 192);
  b.data = std::string(68, 'q') + std::string(60, '\0') + std::string("\0\x3c\0\x40\0\x42", 6) +
           std::string(58, '\0');
  const Catalog c = parse_gguf(in_memory(b.finish()));
  EXPECT_EQ(c.find("q8")->data.shape(), (Shape{2, 32}));
  EXPECT_EQ(c.find("q8")->data.dtype(), DType::q8_0);
  EXPECT_EQ(c.find("q8")->data.bytes(), 68u);
  EXPECT_EQ(to_float(c.find("half")->data.as<Float16>()[2]), 3.0f);
  EXPECT_EQ(c.find("none")->data.elements(), 0);
}

TEST(Gguf, SmallAlignmentsAreReadByCopying) {
  GgufBuilder b;
  b.alignment = 1;
  b.key("general.alignment", 4).metadata.number<uint32_t>(1);
  b.tensor("one", {1}, 24, 0).tensor("float", {1}, kF32, 1);
  b.data = std::string("\7\0\0\x80\x3f", 5);
  const Catalog c = parse_gguf(in_memory(b.finish()));
  EXPECT_EQ(*c.find("float")->data.as<float>(), 1.0f);
}

TEST(Gguf, ALargeVocabularyIsRead) {
  GgufBuilder b = valid();
  b.key("tokens", 9).metadata.number<uint32_t>(8).number<uint64_t>(65536);
  for (int i = 0; i < 65536; ++i) {
    const std::string token = "token " + std::to_string(i);
    b.metadata.number<uint64_t>(token.size()).raw(token);
  }
  const Catalog c = parse_gguf(in_memory(b.finish()));
  const auto& tokens = std::get<std::vector<std::string>>(c.metadata.at("tokens"));
  ASSERT_EQ(tokens.size(), 65536u);
  EXPECT_EQ(tokens[65535], "token 65535");
}

TEST(Gguf, VersionsAndByteOrderAreNamed) {
  for (uint32_t version : {0u, 1u, 4u}) {
    GgufBuilder b = valid();
    b.version = version;
    EXPECT_REFUSED(b.finish(), fmt::format("version {} is not supported", version));
  }
  GgufBuilder b = valid();
  b.version = 0x03000000;
  EXPECT_REFUSED(b.finish(), "big-endian");
  EXPECT_REFUSED(std::string("FUGG\0\0\0\3", 8), "big-endian");
}

TEST(Gguf, CountsAreCheckedBeforeMemoryIsTaken) {
  for (uint64_t count : {uint64_t{1000}, uint64_t{1} << 40, UINT64_MAX}) {
    GgufBuilder tensors = valid(), metadata = valid();
    tensors.tensor_count = count;
    metadata.metadata_count = count;
    EXPECT_REFUSED(tensors.finish(), "tensors, more than fit");
    EXPECT_REFUSED(metadata.finish(), "metadata entries, more than fit");
    for (uint32_t type : {0u, 6u, 7u, 8u, 12u}) EXPECT_REFUSED(with_array(type, count, ""), "more than fit");
    GgufBuilder name = valid();
    name.metadata.number<uint64_t>(count).raw("x").number<uint32_t>(4).number<uint32_t>(1);
    name.metadata_entries = 1;
    EXPECT_REFUSED(name.finish(), "inside a metadata key");
    GgufBuilder text = valid();
    text.key("k", 8).metadata.number<uint64_t>(count);
    EXPECT_REFUSED(text.finish(), "inside a metadata value");
  }
}

TEST(Gguf, MetadataIsChecked) {
  GgufBuilder twice = valid();
  twice.key("k", 4).metadata.number<uint32_t>(1);
  twice.key("k", 4).metadata.number<uint32_t>(1);
  EXPECT_REFUSED(twice.finish(), "metadata \"k\" is there twice");
  EXPECT_REFUSED(with_array(9, 1, std::string(12, '\0')), "array of arrays");
  EXPECT_REFUSED(with_array(13, 1, std::string(12, '\0')), "array of the unknown type 13");
  EXPECT_REFUSED(with_array(7, 1, "\2"), "truth value of 2");
  EXPECT_REFUSED(with_array(10, 1, std::string(8, '\xff')), "too large");
  GgufBuilder unknown = valid();
  unknown.key("k", 99).metadata.number<uint64_t>(0);
  EXPECT_REFUSED(unknown.finish(), "\"k\" has the unknown type 99");
  for (uint32_t alignment : {0u, 3u, 48u}) {
    GgufBuilder b = valid();
    b.key("general.alignment", 4).metadata.number<uint32_t>(alignment);
    EXPECT_REFUSED(b.finish(), "must be a power of two");
  }
  GgufBuilder b = valid();
  b.key("general.alignment", 8).metadata.number<uint64_t>(2).raw("32");
  EXPECT_REFUSED(b.finish(), "\"general.alignment\" is text");
}

TEST(Gguf, TensorsAreChecked) {
  EXPECT_EQ(error_of(valid().finish()), "");
  EXPECT_REFUSED(with_tensor({32}, 20).finish(), "type IQ4_NL");
  EXPECT_REFUSED(with_tensor({32}, 4).finish(), "type number 4");
  EXPECT_REFUSED(with_tensor({1, 1, 1, 1, 1, 1, 1, 1, 1}, kF32).finish(), "9 dimensions");
  EXPECT_REFUSED(with_tensor({UINT64_MAX}, kF32).finish(), "too large");
  EXPECT_REFUSED(with_tensor({uint64_t{1} << 32, uint64_t{1} << 32}, kF32).finish(), "impossible");
  EXPECT_REFUSED(with_tensor({0, INT64_MAX, INT64_MAX}, kF32).finish(), "impossible");
  EXPECT_REFUSED(with_tensor({uint64_t{1} << 62}, kF32).finish(), "impossible");
  EXPECT_REFUSED(with_tensor({16, 2}, 8).finish(), "impossible for type q8_0");
  EXPECT_REFUSED(with_tensor({}, 8).finish(), "impossible for type q8_0");
  EXPECT_REFUSED(with_tensor({8}, kF32, 4).finish(), "no multiple of the file's alignment");
  EXPECT_REFUSED(with_tensor({8}, kF32, 32).finish(), "only 32 bytes are there");
  EXPECT_REFUSED(with_tensor({9}, kF32).finish(), "needs 36 bytes");
  EXPECT_REFUSED(with_tensor({8}, kF32, UINT64_MAX - 31).finish(), "only 32 bytes are there");
  EXPECT_REFUSED(GgufBuilder(valid()).tensor("a", {1}, kF32, 0).finish(), "overlap");
  EXPECT_REFUSED(GgufBuilder(valid()).tensor("b", {1}, kF32, 0).finish(), "overlap");
  EXPECT_REFUSED(GgufBuilder(valid()).tensor("a", {0}, kF32, 0).finish(), "\"a\" is there twice");
}

}  // namespace
}  // namespace rwkvx
