// Whatever happens to a valid file, the readers answer with an Error that names it, or with tensors inside
// it.
#include <random>

#include "file_builders.h"

namespace rwkvx {
namespace {

struct Sample {
  std::string name, bytes;
};

std::vector<Sample> samples() {
  const std::string safetensors =
      safetensors_file(R"({"__metadata__":{"k":"v"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                       R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]}})",
                       std::string(30, '\1'));

  GgufBuilder gguf;
  gguf.key("general.architecture", 8).metadata.number<uint64_t>(5).raw("rwkv7");
  gguf.key("list", 9).metadata.number<uint32_t>(8).number<uint64_t>(2);
  gguf.metadata.number<uint64_t>(1).raw("x").number<uint64_t>(2).raw("yz");
  gguf.key("numbers", 9)
      .metadata.number<uint32_t>(5)
      .number<uint64_t>(2)
      .number<int32_t>(1)
      .number<int32_t>(2);
  gguf.tensor("a", {4, 2}, 0, 0).tensor("q", {32}, 8, 32).data = std::string(32 + 34, '\1');

  using namespace pickle;
  const std::string pth = pth_file(dict(text("model") +
                                        dict(text("a") + some_tensor() + text("t") +
                                             tensor(storage("FloatStorage", "0", 6), 0, {3, 2}, {1, 3})) +
                                        text("step") + integer(3)));
  ZipClaims wide;
  wide.zip64 = true;
  const std::string pth64 =
      ZipBuilder()
          .add("m/data.pkl", whole(dict(text("a") + tensor(storage("HalfStorage", "0", 2), 0, {2}, {1}))),
               wide)
          .add("m/data/0", "1234", wide)
          .add("m/byteorder", "little")
          .finish(true);
  return {{"safetensors", safetensors}, {"gguf", gguf.finish()}, {"pth", pth}, {"pth64", pth64}};
}

/// Reads every byte of every tensor, so that ASan sees a view that is not inside the file.
void read_all(std::string_view bytes) {
  const Catalog catalog = parse_catalog(in_memory(bytes));
  volatile unsigned sum = 0;
  for (const CatalogTensor& t : catalog.tensors()) {
    for (std::byte b : t.data.raw()) sum = sum + static_cast<unsigned>(b);
  }
}

/// True when the bytes are refused, by an Error that names the file in one line; any other exception fails
/// the test.
bool refused(std::string_view bytes) {
  try {
    read_all(bytes);
    return false;
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_THAT(message, testing::HasSubstr(kTestFile));
    EXPECT_EQ(message.find('\n'), std::string::npos);
    EXPECT_LT(message.size(), 600u);
    return true;
  }
}

TEST(Damage, SamplesAreValid) {
  for (const Sample& s : samples()) EXPECT_FALSE(refused(s.bytes)) << s.name << ": " << error_of(s.bytes);
}

TEST(Damage, EveryPrefixIsRefused) {
  for (const Sample& s : samples()) {
    for (size_t length = 0; length < s.bytes.size(); ++length) {
      EXPECT_TRUE(refused(s.bytes.substr(0, length)))
          << s.name << " cut to " << length << " of " << s.bytes.size();
    }
  }
}

TEST(Damage, EveryByteChangedIsRefusedOrRead) {
  for (const Sample& s : samples()) {
    size_t refusals = 0;
    for (size_t at = 0; at < s.bytes.size(); ++at) {
      for (int change : {0x01, 0x80, 0xff}) {
        std::string bytes = s.bytes;
        bytes[at] = static_cast<char>(bytes[at] ^ change);
        refusals += refused(bytes);
      }
    }
    EXPECT_GT(refusals, s.bytes.size() / 2) << s.name;
  }
}

TEST(Damage, RandomBytesAreRefused) {
  std::mt19937 random(7);
  const std::string starts[] = {"", "PK\3\4", "GGUF" + std::string("\3\0\0\0", 4),
                                std::string("\x40\0\0\0\0\0\0\0{\"", 10)};
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = starts[i % 4];
    const size_t length = random() % 400;
    while (bytes.size() < length) bytes += static_cast<char>(random());
    EXPECT_TRUE(refused(bytes)) << i;
  }
}

TEST(Damage, SeveralBytesChanged) {
  std::mt19937 random(8);
  for (const Sample& s : samples()) {
    for (int i = 0; i < 2000; ++i) {
      std::string bytes = s.bytes;
      for (unsigned n = 1 + random() % 6; n > 0; --n) {
        const char values[] = {'\0', '\1', '\x7f', '\x80', '\xff', static_cast<char>(random())};
        bytes[random() % bytes.size()] = values[random() % sizeof values];
      }
      refused(bytes);
    }
  }
}

}  // namespace
}  // namespace rwkvx
