#include "file_builders.h"

namespace rwkvx {
namespace {

/// A file of one tensor "a" with the given description and 24 bytes of data.
std::string one(const std::string& description) {
  return safetensors_file("{\"a\":" + description + "}", std::string(24, '\1'));
}
std::string shaped(const std::string& shape, const std::string& offsets = "[0,24]") {
  return one(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}");
}

TEST(Safetensors, ReadsWithoutCopying) {
  const FileBytes file = in_memory(safetensors_file(
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[8,16]},)"
      R"("a":{"shape":[],"data_offsets":[0,8],"dtype":"I64"}}      )",
      std::string("\5\0\0\0\0\0\0\0\0\0\x80\x3f\0\0\0\x40", 16)));
  const Catalog catalog = parse_safetensors(file);
  EXPECT_EQ(*catalog.text("format"), "pt");
  ASSERT_EQ(catalog.tensors().size(), 2u);
  EXPECT_EQ(*catalog.find("a")->data.as<int64_t>(), 5);
  EXPECT_EQ(catalog.find("a")->data.shape(), Shape{});
  const ConstView b = catalog.find("b")->data;
  EXPECT_EQ(b.as<float>()[0], 1.0f);
  EXPECT_EQ(b.as<float>()[1], 2.0f);
  EXPECT_EQ(b.data(), file.bytes.data() + file.bytes.size() - 8);
}

TEST(Safetensors, MisalignedTensorsAreCopied) {
  for (size_t pad = 0; pad < 8; ++pad) {
    const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                               R"("b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]},)"
                               R"("c":{"dtype":"F64","shape":[1],"data_offsets":[6,14]}})" +
                               std::string(pad, ' ');
    const double c = 2.5;
    std::string data("\0\0\x80\x3f\x80\x3f", 6);
    data.append(reinterpret_cast<const char*>(&c), 8);
    const Catalog catalog = parse_safetensors(in_memory(safetensors_file(header, data)));
    EXPECT_EQ(*catalog.find("a")->data.as<float>(), 1.0f);
    EXPECT_EQ(to_float(*catalog.find("b")->data.as<BFloat16>()), 1.0f);
    EXPECT_EQ(*catalog.find("c")->data.as<double>(), 2.5);
    for (const CatalogTensor& t : catalog.tensors()) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data.data()) % element_alignment(t.data.dtype()), 0u);
    }
  }
}

TEST(Safetensors, ToleratesGapsEmptyTensorsAndLaterFields) {
  const Catalog catalog = parse_safetensors(
      in_memory(safetensors_file(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3],"later":7},)"
                                 R"("e":{"dtype":"F32","shape":[0,5],"data_offsets":[2,2]},)"
                                 R"("b":{"dtype":"BOOL","shape":[1],"data_offsets":[5,6]}})",
                                 "0123456789")));
  EXPECT_EQ(catalog.find("a")->data.as<uint8_t>()[1], '2');
  EXPECT_EQ(catalog.find("e")->data.elements(), 0);
  EXPECT_EQ(*catalog.find("b")->data.as<uint8_t>(), '5');
}

TEST(Safetensors, HeaderLengthIsChecked) {
  EXPECT_REFUSED(std::string("\x10\0\0\0\0\0\0\0{", 9), "cut short");
  EXPECT_REFUSED(std::string("\0\0\0\x10\0\0\0\0{}", 10), "no safetensors header is that long");
  EXPECT_THAT([] { parse_safetensors(in_memory(std::string(8, '\xff') + "{}")); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("no safetensors header is that long")));
  EXPECT_THAT([] { parse_safetensors(in_memory("short")); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("length of its header")));
}

TEST(Safetensors, HeaderMustBeJsonOfTheFormat) {
  EXPECT_REFUSED(safetensors_file("{\"a\":", ""), "not valid JSON");
  EXPECT_REFUSED(safetensors_file("{} x", ""), "not valid JSON");
  EXPECT_REFUSED(safetensors_file("{\"\xff\":1}", ""), "not valid JSON");
  EXPECT_REFUSED(safetensors_file("{" + std::string(200000, '['), ""), "not valid JSON");
  EXPECT_REFUSED(safetensors_file("{\"a\":" + std::string(200000, '['), ""), "tensor \"a\" is an array");
  EXPECT_REFUSED(safetensors_file("{\"a\":1}", ""), "tensor \"a\" is a number");
  EXPECT_REFUSED(safetensors_file("{\"__metadata__\":{\"k\":1}}", ""), "\"k\" in __metadata__ is a number");
  EXPECT_REFUSED(safetensors_file("{\"__metadata__\":{\"k\":{}}}", ""), "is an object");
  EXPECT_REFUSED(one("{}"), "no complete dtype, shape and data_offsets");
  EXPECT_REFUSED(one(R"({"dtype":"F32","shape":[6]})"), "no complete dtype");
  EXPECT_REFUSED(one(R"({"dtype":7,"shape":[6],"data_offsets":[0,24]})"),
                 "\"dtype\" in tensor \"a\" is a number");
  EXPECT_REFUSED(one(R"({"dtype":"F32","shape":{},"data_offsets":[0,24]})"), "is an object");
  EXPECT_REFUSED(one(R"({"dtype":"F32","shape":[[6]],"data_offsets":[0,24]})"), "is an array");
  EXPECT_THAT([] { parse_safetensors(in_memory(safetensors_file("[]", ""))); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("instead of a JSON object")));
}

TEST(Safetensors, NamesAndFieldsMayNotRepeat) {
  const std::string tensor = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_REFUSED(safetensors_file("{\"a\":" + tensor + ",\"a\":" + tensor + "}", "xy"),
                 "tensor \"a\" is there twice");
  EXPECT_REFUSED(safetensors_file("{\"a\":" + tensor + ",\"\\u0061\":" + tensor + "}", "xy"),
                 "is there twice");
  EXPECT_REFUSED(one(R"({"dtype":"F32","shape":[6],"shape":[6],"data_offsets":[0,24]})"), "\"shape\" twice");
  EXPECT_REFUSED(safetensors_file(R"({"__metadata__":{"k":"1","k":"2"}})", ""), "\"k\" twice");
  EXPECT_REFUSED(safetensors_file(R"({"__metadata__":{},"__metadata__":{}})", ""), "is there twice");
}

TEST(Safetensors, ShapesAreChecked) {
  EXPECT_EQ(error_of(shaped("[2,3]")), "");
  EXPECT_REFUSED(shaped("[-6]"), "negative number -6");
  EXPECT_REFUSED(shaped("[1.5]"), "no whole number");
  EXPECT_REFUSED(shaped("[1e30]"), "no whole number");
  EXPECT_REFUSED(shaped("[36893488147419103232]"), "no whole number");
  EXPECT_REFUSED(shaped("[9223372036854775808]"), "too large");
  EXPECT_REFUSED(shaped("[4294967296,4294967296]"), "impossible shape");
  EXPECT_REFUSED(shaped("[4294967296,4294967296,4294967296,6]"), "impossible shape");
  EXPECT_REFUSED(shaped("[0,9223372036854775807,9223372036854775807]", "[0,0]"), "impossible shape");
  EXPECT_REFUSED(shaped("[4611686018427387904]"), "impossible shape");  // elements fit, bytes do not
  EXPECT_REFUSED(shaped("[1,1,1,1,6]"), "more than 4 dimensions");
  EXPECT_REFUSED(shaped("[7]"), "needs 28 bytes");
  EXPECT_REFUSED(one(R"({"dtype":"F8_E4M3","shape":[24],"data_offsets":[0,24]})"), "F8_E4M3");
}

TEST(Safetensors, OffsetsAreChecked) {
  EXPECT_REFUSED(shaped("[6]", "[0]"), "no complete");
  EXPECT_REFUSED(shaped("[6]", "[0,24,48]"), "more than two data_offsets");
  EXPECT_REFUSED(shaped("[6]", "[24,0]"), "ends before it begins");
  EXPECT_REFUSED(shaped("[6]", "[1,25]"), "only 24 bytes are there");
  EXPECT_REFUSED(shaped("[6]", "[18446744073709551592,18446744073709551615]"), "only 24 bytes are there");
  EXPECT_REFUSED(shaped("[6]", "[-8,16]"), "negative number -8");
  EXPECT_REFUSED(safetensors_file(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                  R"("b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                                  "01234567"),
                 "tensors \"a\" (bytes 0 to 4) and \"b\" (from byte 3) overlap");
}

}  // namespace
}  // namespace rwkvx
