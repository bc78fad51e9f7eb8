// What is written in each format reads back bit by bit, and nothing half-written stays.
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <random>

#include "file_builders.h"
#include "formats/catalog.h"
#include "tensor/buffer.h"

namespace rwkvx {
namespace {

using Writer =
    std::function<void(const Path&, std::span<const TensorToWrite>, const Metadata&, const Progress&)>;

void write(FileFormat format, const Path& path, std::span<const TensorToWrite> tensors,
           const Metadata& metadata = {}, const Progress& progress = {}) {
  switch (format) {
    case FileFormat::pth:
      return write_pth(path, tensors, progress);
    case FileFormat::safetensors:
      return write_safetensors(path, tensors, metadata, progress);
    case FileFormat::gguf:
      return write_gguf(path, tensors, metadata, progress);
  }
}

struct Tensors {
  std::vector<Buffer> buffers;
  std::vector<TensorToWrite> list;

  void add(const std::string& name, DType dtype, const Shape& shape) {
    std::mt19937 random(static_cast<unsigned>(buffers.size() + 1));
    Buffer& buffer = buffers.emplace_back(dtype, shape);
    for (std::byte& b : buffer.view().raw()) b = static_cast<std::byte>(random());
    list.push_back(
        {name, dtype, shape, [this, i = buffers.size() - 1] { return std::as_const(buffers[i]).view(); }});
  }
};

void expect_equal(const Catalog& catalog, Tensors& tensors) {
  EXPECT_EQ(catalog.tensors().size(), tensors.list.size());
  for (const TensorToWrite& t : tensors.list) {
    const CatalogTensor* read = catalog.find(t.name);
    ASSERT_NE(read, nullptr) << t.name;
    EXPECT_EQ(read->data.dtype(), t.dtype) << t.name;
    ASSERT_EQ(read->data.shape(), t.shape) << t.name;
    const ConstView data = t.data();
    EXPECT_TRUE(data.bytes() == 0 || std::memcmp(read->data.data(), data.data(), data.bytes()) == 0)
        << t.name;
  }
}

class RoundTrip : public testing::TestWithParam<FileFormat> {
 protected:
  TemporaryFolder folder_;
};

TEST_P(RoundTrip, EveryTypeAndShape) {
  Tensors tensors;
  const auto types = {DType::u8,  DType::f32, DType::i8,  DType::bf16, DType::f16,
                      DType::f64, DType::i16, DType::i32, DType::i64};
  for (DType dtype : types) {
    if (GetParam() == FileFormat::gguf && dtype == DType::u8) continue;
    const std::string name(rwkvx::name(dtype));
    tensors.add(name + ".vector", dtype, Shape{3});
    tensors.add(name + ".matrix", dtype, Shape{5, 7});
    tensors.add(name + ".cube", dtype, Shape{2, 1, 3, 5});
    tensors.add(name + ".scalar", dtype, Shape{});
    tensors.add(name + ".empty", dtype, Shape{0, 4});
    tensors.add("Ünï." + name, dtype, Shape{1});
  }
  if (GetParam() == FileFormat::gguf) {
    for (DType dtype : {DType::q4_0, DType::q4_1, DType::q5_0, DType::q5_1, DType::q8_0}) {
      tensors.add(std::string(name(dtype)), dtype, Shape{3, 64});
    }
    for (DType dtype : {DType::q2_k, DType::q3_k, DType::q4_k, DType::q5_k, DType::q6_k}) {
      tensors.add(std::string(name(dtype)), dtype, Shape{3, 256});
    }
  }
  const Path path = folder_ / "model";
  write(GetParam(), path, tensors.list);
  const Catalog catalog = open_catalog(path);
  EXPECT_EQ(catalog.format, GetParam());
  expect_equal(catalog, tensors);
  if (GetParam() != FileFormat::safetensors) {
    for (size_t i = 0; i < tensors.list.size(); ++i)
      EXPECT_EQ(catalog.tensors()[i].name, tensors.list[i].name);
  }
}

TEST_P(RoundTrip, TensorsAreReadInPlace) {
  // Odd lengths in front of larger types: the writers align them.
  Tensors tensors;
  tensors.add("a", DType::i8, Shape{3});
  tensors.add("b", DType::f32, Shape{3});
  tensors.add("c", DType::bf16, Shape{3});
  tensors.add("d", DType::i64, Shape{3});
  const Path path = folder_ / "model";
  write(GetParam(), path, tensors.list);
  const FileBytes file = map_file(path);
  const Catalog catalog = parse_catalog(file);
  expect_equal(catalog, tensors);
  for (const CatalogTensor& t : catalog.tensors()) {
    EXPECT_GE(t.data.data(), file.bytes.data()) << t.name;
    EXPECT_LT(t.data.data(), file.bytes.data() + file.bytes.size()) << t.name;
  }
}

TEST_P(RoundTrip, EqualTensorsGiveEqualFiles) {
  Tensors tensors;
  tensors.add("a", DType::f32, Shape{17});
  const auto contents = [&](const std::string& folder) {
    std::filesystem::create_directory(folder_ / folder);
    const Path path = folder_ / (folder + "/model");
    write(GetParam(), path, tensors.list);
    return read_file(path);
  };
  EXPECT_EQ(contents("one"), contents("two"));
}

TEST_P(RoundTrip, ProgressEndsAtTheTotal) {
  Tensors tensors;
  tensors.add("large", DType::f32, Shape{5, 1 << 20});
  tensors.add("small", DType::f32, Shape{3});
  const uint64_t total = (uint64_t{20} << 20) + 12;
  std::vector<uint64_t> seen;
  write(GetParam(), folder_ / "model", tensors.list, {}, [&](uint64_t done, uint64_t all) {
    EXPECT_EQ(all, total);
    seen.push_back(done);
  });
  EXPECT_GT(seen.size(), 2u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), total);
  expect_equal(open_catalog(folder_ / "model"), tensors);
}

TEST_P(RoundTrip, NothingHalfWrittenStays) {
  Tensors tensors;
  tensors.add("a", DType::f32, Shape{3});
  const Path path = folder_ / "model";
  std::ofstream(path) << "what was there before";
  const auto stop = [](uint64_t, uint64_t) { throw Error("stopped"); };
  EXPECT_THROW(write(GetParam(), path, tensors.list, {}, stop), Error);
  EXPECT_EQ(read_file(path), "what was there before");
  tensors.list[0].data = []() -> ConstView { throw Error("the source is gone"); };
  EXPECT_THROW(write(GetParam(), path, tensors.list), Error);
  EXPECT_EQ(read_file(path), "what was there before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1);
}

/// As long as it lives, no file grows beyond `bytes`: writing fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_P(RoundTrip, AFullDiskLeavesTheOldFile) {
  Tensors tensors;
  tensors.add("a", DType::f32, Shape{5, 1 << 20});
  const Path path = folder_ / "model";
  std::ofstream(path) << "what was there before";
  std::string message;
  {
    const FileSizeLimit limit(10 << 20);
    try {
      write(GetParam(), path, tensors.list);
    } catch (const Error& error) {
      message = error.what();
    }
  }
  EXPECT_THAT(message,
              testing::AllOf(testing::HasSubstr("cannot write " + path.string()),
                             testing::HasSubstr("File too large"), testing::HasSubstr("left as it was")));
  EXPECT_EQ(read_file(path), "what was there before");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_.path()), {}), 1);
  EXPECT_THAT([&] { write(GetParam(), folder_ / "no-such-folder/model", tensors.list); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("no-such-folder/model")));
}

TEST_P(RoundTrip, WhatCannotBeWrittenIsNamed) {
  const auto refusal = [&](const std::string& name, DType dtype, const Shape& shape) {
    Tensors tensors;
    tensors.add("fine", DType::f32, Shape{1});
    const Buffer buffer(dtype, shape);
    tensors.list.push_back({name, dtype, shape, [&] { return buffer.view(); }});
    try {
      write(GetParam(), folder_ / "model", tensors.list);
    } catch (const Error& error) {
      EXPECT_FALSE(std::filesystem::exists(folder_ / "model"));
      return std::string(error.what());
    }
    std::filesystem::remove(folder_ / "model");
    return std::string();
  };
  using testing::HasSubstr;
  EXPECT_EQ(refusal("good", DType::f32, Shape{2}), "");
  EXPECT_THAT(refusal("fine", DType::f32, Shape{2}), HasSubstr("\"fine\" is there twice"));
  EXPECT_THAT(refusal("", DType::f32, Shape{2}), HasSubstr("names must be UTF-8"));
  EXPECT_THAT(refusal("\xff", DType::f32, Shape{2}), HasSubstr("\"\\xff\""));
  if (GetParam() == FileFormat::gguf) {
    EXPECT_THAT(refusal("x", DType::u8, Shape{2}), HasSubstr("GGUF has no type u8 (tensor \"x\")"));
    EXPECT_THAT(refusal(std::string(64, 'x'), DType::f32, Shape{2}), HasSubstr("longer than the 63 bytes"));
    EXPECT_EQ(refusal(std::string(63, 'x'), DType::f32, Shape{2}), "");
    EXPECT_THAT(refusal("x", DType::q8_0, Shape{32, 2}), HasSubstr("no multiple of 32"));
  } else {
    EXPECT_THAT(refusal("x", DType::q8_0, Shape{2, 32}), HasSubstr("has no type q8_0 (tensor \"x\")"));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, RoundTrip,
                         testing::Values(FileFormat::pth, FileFormat::safetensors, FileFormat::gguf),
                         [](const auto& test) {
                           const std::string name(rwkvx::name(test.param));
                           return name == ".pth" ? "pth" : name;
                         });

TEST(Pth, MoreEntriesThanSixteenBitsCount) {
  const TemporaryFolder folder;
  constexpr size_t kCount = 66000;
  Buffer value(DType::i8, Shape{1});
  std::vector<TensorToWrite> list;
  for (size_t i = 0; i < kCount; ++i) {
    list.push_back({std::to_string(i), DType::i8, Shape{1}, [&] {
                      ++*value.as<int8_t>();
                      return std::as_const(value).view();
                    }});
  }
  write_pth(folder / "model", list);
  const Catalog catalog = open_catalog(folder / "model");
  ASSERT_EQ(catalog.tensors().size(), kCount);
  for (size_t i = 0; i < kCount; i += 997) {
    EXPECT_EQ(*catalog.tensors()[i].data.as<int8_t>(), static_cast<int8_t>(i + 1));
  }
}

TEST(GgufMetadata, RoundTrips) {
  const TemporaryFolder folder;
  Tensors tensors;
  tensors.add("a", DType::f32, Shape{3});
  const Metadata metadata = {
      {"general.architecture", std::string("rwkvx")},
      {"bytes", std::string("\xff\0x", 3)},
      {"yes", true},
      {"i32", int64_t{-5}},
      {"i64", int64_t{-5000000000}},
      {"u32", uint64_t{4000000000}},
      {"u64", uint64_t{5000000000}},
      {"f32", 0.25},
      {"whole", std::vector<int64_t>{1, -2, 3}},
      {"large", std::vector<int64_t>{1, int64_t{1} << 40}},
      {"fractions", std::vector<double>{0.5, -2}},
      {"texts", std::vector<std::string>{"a", "", "\xfe"}},
  };
  Metadata written = metadata;
  written.emplace_back("general.alignment", uint64_t{64});  // the writer's own affair
  write_gguf(folder / "model.gguf", tensors.list, written);
  const Catalog catalog = open_catalog(folder / "model.gguf");
  EXPECT_EQ(catalog.metadata.size(), metadata.size());
  for (const auto& [key, value] : metadata) EXPECT_EQ(catalog.metadata.at(key), value) << key;
  expect_equal(catalog, tensors);
  written = {{"k", true}, {"k", true}};
  EXPECT_THROW(write_gguf(folder / "other.gguf", tensors.list, written), Error);
}

TEST(SafetensorsMetadata, IsWrittenAsText) {
  const TemporaryFolder folder;
  Tensors tensors;
  tensors.add("a", DType::f32, Shape{3});
  const Metadata metadata = {{"format", std::string("pt")},
                             {"yes", true},
                             {"count", uint64_t{7}},
                             {"list", std::vector<int64_t>{1, 2}},
                             {"quote", std::string("\"\n")}};
  write_safetensors(folder / "m", tensors.list, metadata);
  const Catalog catalog = open_catalog(folder / "m");
  EXPECT_EQ(*catalog.text("format"), "pt");
  EXPECT_EQ(*catalog.text("yes"), "true");
  EXPECT_EQ(*catalog.text("count"), "7");
  EXPECT_EQ(*catalog.text("list"), "[1,2]");
  EXPECT_EQ(*catalog.text("quote"), "\"\n");
  EXPECT_THAT(
      [&] {
        write_safetensors(folder / "n", tensors.list, {{"k", std::string("\xff")}});
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("not valid UTF-8")));
  EXPECT_FALSE(std::filesystem::exists(folder / "n"));
}

}  // namespace
}  // namespace rwkvx
