#include "file_builders.h"

namespace rwkvx {
namespace {

using namespace pickle;

/// The checkpoint {"a": `tensor`} over storage 0, which holds 1 to 6.
Bytes one(const std::string& tensor) { return pth_file(dict(text("a") + tensor)); }
std::string floats(int64_t elements = 6) { return storage("FloatStorage", "0", elements); }

std::vector<float> values(const Bytes& file) {
  const Catalog catalog = parse_pth(in_memory(file));
  const ConstView a = catalog.find("a")->data;
  return {a.as<float>(), a.as<float>() + a.elements()};
}

TEST(Pth, ReadsInPlace) {
  const FileBytes file = in_memory(pth_file(dict(text("a") + some_tensor() + text("tied") + some_tensor())));
  const Catalog catalog = parse_pth(file);
  EXPECT_EQ(catalog.format, FileFormat::pth);
  ASSERT_EQ(catalog.tensors().size(), 2u);
  const ConstView a = catalog.find("a")->data;
  EXPECT_EQ(a.shape(), (Shape{2, 3}));
  EXPECT_GE(a.data(), file.bytes.data());
  EXPECT_LT(a.data(), file.bytes.data() + file.bytes.size());
  EXPECT_EQ(a.as<float>()[5], 6.0f);
  EXPECT_EQ(catalog.find("tied")->data.data(), a.data());
}

TEST(Pth, EveryStride) {
  using testing::ElementsAre;
  EXPECT_THAT(values(one(tensor(floats(), 0, {3, 2}, {1, 3}))), ElementsAre(1, 4, 2, 5, 3, 6));  // transposed
  EXPECT_THAT(values(one(tensor(floats(), 2, {2, 3}, {1, 0}))), ElementsAre(3, 3, 3, 4, 4, 4));  // expanded
  EXPECT_THAT(values(one(tensor(floats(), 1, {2, 2}, {3, 1}))), ElementsAre(2, 3, 5, 6));  // a column block
  EXPECT_THAT(values(one(tensor(floats(), 3, {3}, {1}))), ElementsAre(4, 5, 6));           // a row
  EXPECT_THAT(values(one(tensor(floats(), 0, {2, 1, 3}, {3, 77, 1}))), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(values(one(tensor(floats(), 0, {1, 3}, {INT64_MAX, 2}))), ElementsAre(1, 3, 5));
  EXPECT_THAT(values(one(tensor(floats(), 0, {2, 3, 2}, {0, 1, 3}))),
              ElementsAre(1, 4, 2, 5, 3, 6, 1, 4, 2, 5, 3, 6));
  EXPECT_THAT(values(one(tensor(floats(), 5, {}, {}))), ElementsAre(6));  // a scalar
  EXPECT_THAT(values(one(tensor(floats(), 5, {1, 1}, {INT64_MAX, INT64_MAX}))), ElementsAre(6));
  EXPECT_THAT(values(one(tensor(floats(), 99, {0, 4}, {4, 1}))), testing::IsEmpty());
}

TEST(Pth, MisalignedStoragesAreCopied) {
  for (size_t pad = 0; pad < 4; ++pad) {
    // A folder's name of another length moves the data of a zip tool that does not align them.
    const float value = 1.5f;
    Bytes contents(reinterpret_cast<const char*>(&value), 4);
    Bytes file =
        ZipBuilder()
            .add("m/data.pkl", whole(dict(text("a") + tensor(storage("FloatStorage", "0", 1), 0, {1}, {1}))))
            .finish();
    file =
        ZipBuilder()
            .add("m/data.pkl", whole(dict(text("a") + tensor(storage("FloatStorage", "0", 1), 0, {1}, {1}) +
                                          text("b") + tensor(storage("FloatStorage", "0", 1), 0, {}, {}))))
            .add("m/data/0", contents)
            .finish();
    auto block = std::make_shared<std::vector<std::byte>>(file.size() + pad);
    std::memcpy(block->data() + pad, file.data(), file.size());
    const std::span<const std::byte> bytes(block->data() + pad, file.size());
    const Catalog catalog = parse_pth({kTestFile, bytes, block});
    EXPECT_EQ(*catalog.find("a")->data.as<float>(), 1.5f);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(catalog.find("a")->data.data()) % 4, 0u);
    EXPECT_EQ(catalog.find("a")->data.data(), catalog.find("b")->data.data()) << "copied once";
  }
}

TEST(Pth, ByteOrder) {
  const auto with_order = [](const std::string& order) {
    return ZipBuilder()
        .add("m/data.pkl", whole(dict(text("a") + tensor(floats(0), 0, {0}, {1}))))
        .add("m/byteorder", order)
        .add("m/data/0", "")
        .finish();
  };
  EXPECT_EQ(error_of(with_order("little")), "");
  EXPECT_REFUSED(with_order("big"), "big-endian machine");
  EXPECT_REFUSED(with_order("mixed"), "unknown byte order \"mixed\"");
}

TEST(Pth, TensorsStayInsideTheirStorages) {
  EXPECT_EQ(error_of(one(some_tensor())), "");
  EXPECT_REFUSED(one(tensor(floats(), 0, {7}, {1})), "reaches past its storage of 6");
  EXPECT_REFUSED(one(tensor(floats(), 1, {6}, {1})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), 6, {}, {})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), INT64_MAX, {1}, {1})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), 0, {2}, {6})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), 0, {2}, {INT64_MAX})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), 1, {3, 2}, {INT64_MAX, INT64_MAX})), "reaches past its storage");
  EXPECT_REFUSED(one(tensor(floats(), 0, {int64_t{1} << 32, int64_t{1} << 32}, {0, 0})), "impossible shape");
  EXPECT_REFUSED(one(tensor(floats(), 0, {0, INT64_MAX, INT64_MAX}, {0, 0, 0})), "impossible shape");
  EXPECT_REFUSED(one(tensor(floats(), 0, std::vector<int64_t>(9, 1), std::vector<int64_t>(9, 1))),
                 "9 dimensions");
}

TEST(Pth, SmallStoragesDoNotExpandIntoAllMemory) {
  EXPECT_REFUSED(one(tensor(floats(), 0, {int64_t{1} << 40}, {0})), "would expand to 4398046511104 bytes");
  // Many tensors that are each small enough.
  std::string items;
  for (int i = 0; i < 100; ++i) items += text(std::to_string(i)) + tensor(floats(), 0, {1 << 20}, {0});
  EXPECT_REFUSED(pth_file(dict(items)), "would expand");
}

TEST(Pth, StoragesAreChecked) {
  EXPECT_REFUSED(one(tensor(floats(7), 0, {6}, {1})),
                 "storage of 7 elements of type f32, but its zip entry has 24 bytes");
  EXPECT_REFUSED(one(tensor(floats(5), 0, {5}, {1})), "but its zip entry has 24 bytes");
  EXPECT_REFUSED(one(tensor(floats(int64_t{1} << 62), 0, {6}, {1})), "but its zip entry has 24 bytes");
  EXPECT_REFUSED(one(tensor(storage("DoubleStorage", "0", 6), 0, {6}, {1})), "type f64");
  EXPECT_REFUSED(one(tensor(storage("FloatStorage", "1", 6), 0, {6}, {1})),
                 "\"archive/data/1\", which is missing");
  EXPECT_REFUSED(one(tensor(storage("FloatStorage", "../data.pkl", 6), 0, {6}, {1})), "which is missing");
}

TEST(Pth, OtherArchivesAreNamed) {
  EXPECT_REFUSED(ZipBuilder().add("word/document.xml", "<x/>").finish(), "no data.pkl");
  EXPECT_REFUSED(ZipBuilder().finish(), "no data.pkl");
  EXPECT_REFUSED(ZipBuilder().add("data.pkl", "x").finish(), "no data.pkl");
  EXPECT_REFUSED(ZipBuilder().add("a/data.pkl", "x").add("b/data.pkl", "x").finish(), "two data.pkl");
  EXPECT_REFUSED(pth_file(global("os", "system") + text("id") + "\x85R"), "names os.system");
}

}  // namespace
}  // namespace rwkvx
