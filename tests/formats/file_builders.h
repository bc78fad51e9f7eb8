#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "base/error.h"
#include "formats/file_bytes.h"
#include "formats/zip_format.h"

namespace rwkvx {

/// Bytes of a file under construction, little-endian.
struct Bytes : std::string {
  using std::string::string;
  template <typename T>
  Bytes& number(std::type_identity_t<T> value) {
    append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& raw(std::string_view text) {
    append(text);
    return *this;
  }
  template <typename T>
  void set(size_t at, std::type_identity_t<T> value) {
    ASSERT_LE(at + sizeof(T), size());
    std::memcpy(data() + at, &value, sizeof value);
  }
};

inline constexpr const char* kTestFile = "some-model.bin";

/// A file that is only in memory. Its bytes are a block of their own size, so that ASan sees any byte read
/// behind it.
inline FileBytes in_memory(std::string_view contents) {
  auto block = std::make_shared<std::vector<std::byte>>(contents.size());
  if (!contents.empty()) std::memcpy(block->data(), contents.data(), contents.size());
  const std::span<const std::byte> bytes(*block);
  return {kTestFile, bytes, std::move(block)};
}

/// The error's message, which must be one line that names the file; empty when reading works.
inline std::string error_of(std::string_view contents) {
  try {
    parse_catalog(in_memory(contents));
  } catch (const Error& error) {
    std::string message = error.what();
    EXPECT_THAT(message, testing::HasSubstr(kTestFile));
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    return message;
  }
  return "";
}

#define EXPECT_REFUSED(contents, words) EXPECT_THAT(error_of(contents), testing::HasSubstr(words))

/// A folder that goes with the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "rwkvx-formats-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("no temporary folder");
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  Path operator/(const std::string& name) const { return path_ / name; }
  const Path& path() const { return path_; }

 private:
  Path path_;
};

inline Bytes safetensors_file(std::string_view header, std::string_view data) {
  Bytes out;
  out.number<uint64_t>(header.size()).raw(header).raw(data);
  return out;
}

/// What a zip entry says of itself; what is not given is true.
struct ZipClaims {
  uint16_t method = 0, flags = 0;
  std::optional<uint64_t> size = {}, compressed = {}, header = {};  // in the directory
  std::optional<std::string> directory_name = {};
  bool zip64 = false;
};

/// A zip archive whose every claim can be made false.
class ZipBuilder {
 public:
  ZipBuilder& add(const std::string& name, std::string_view contents, const ZipClaims& claims = {}) {
    const uint64_t header = out_.size();
    out_.number<uint32_t>(zip::kLocalHeader).number<uint16_t>(20).number<uint16_t>(claims.flags);
    out_.number<uint16_t>(claims.method).number<uint32_t>(0).number<uint32_t>(0);
    out_.number<uint32_t>(static_cast<uint32_t>(contents.size()))
        .number<uint32_t>(static_cast<uint32_t>(contents.size()));
    // Data aligned to 8 bytes, as rwkvx and torch do.
    const size_t pad = (8 - (out_.size() + 4 + name.size()) % 8) % 8 + 8;
    out_.number<uint16_t>(static_cast<uint16_t>(name.size())).number<uint16_t>(static_cast<uint16_t>(pad));
    out_.raw(name).raw("FB").number<uint16_t>(static_cast<uint16_t>(pad - 4)).raw(std::string(pad - 4, 'Z'));
    out_.raw(contents);

    const uint64_t size = claims.size.value_or(contents.size());
    const uint64_t compressed = claims.compressed.value_or(size);
    const uint64_t begin = claims.header.value_or(header);
    const std::string listed = claims.directory_name.value_or(name);
    const auto short_field = [&](uint64_t value) {
      return claims.zip64 ? zip::kIn64 : static_cast<uint32_t>(value);
    };
    directory_.number<uint32_t>(zip::kCentralHeader).number<uint16_t>(20).number<uint16_t>(20);
    directory_.number<uint16_t>(claims.flags)
        .number<uint16_t>(claims.method)
        .number<uint32_t>(0)
        .number<uint32_t>(0);
    directory_.number<uint32_t>(short_field(compressed)).number<uint32_t>(short_field(size));
    directory_.number<uint16_t>(static_cast<uint16_t>(listed.size()));
    directory_.number<uint16_t>(claims.zip64 ? 28 : 0)
        .number<uint16_t>(0)
        .number<uint16_t>(0)
        .number<uint16_t>(0);
    directory_.number<uint32_t>(0).number<uint32_t>(short_field(begin)).raw(listed);
    if (claims.zip64) {
      directory_.number<uint16_t>(zip::kExtra64).number<uint16_t>(24);
      directory_.number<uint64_t>(size).number<uint64_t>(compressed).number<uint64_t>(begin);
    }
    ++count_;
    return *this;
  }

  uint64_t size() const { return out_.size(); }

  /// With `zip64` the 32-bit fields of the end record only point there.
  Bytes finish(bool zip64 = false) const {
    Bytes out = out_;
    const uint64_t begin = out.size(), size = directory_.size();
    out.raw(directory_);
    if (zip64) {
      const uint64_t record = out.size();
      out.number<uint32_t>(zip::kEndOfDirectory64)
          .number<uint64_t>(44)
          .number<uint16_t>(45)
          .number<uint16_t>(45);
      out.number<uint32_t>(0).number<uint32_t>(0).number<uint64_t>(count_).number<uint64_t>(count_);
      out.number<uint64_t>(size).number<uint64_t>(begin);
      out.number<uint32_t>(zip::kEndLocator64)
          .number<uint32_t>(0)
          .number<uint64_t>(record)
          .number<uint32_t>(1);
    }
    const uint16_t count = zip64 ? zip::kIn64Short : count_;
    out.number<uint32_t>(zip::kEndOfDirectory).number<uint16_t>(0).number<uint16_t>(0);
    out.number<uint16_t>(count).number<uint16_t>(count);
    out.number<uint32_t>(zip64 ? zip::kIn64 : static_cast<uint32_t>(size));
    out.number<uint32_t>(zip64 ? zip::kIn64 : static_cast<uint32_t>(begin)).number<uint16_t>(0);
    return out;
  }

 private:
  Bytes out_, directory_;
  uint16_t count_ = 0;
};

/// Pieces of pickles (protocol 2); see Python's pickletools.py.
namespace pickle {

inline std::string text(std::string_view value) {
  return std::string("X") + std::string(Bytes().number<uint32_t>(static_cast<uint32_t>(value.size()))) +
         std::string(value);
}
inline std::string integer(int64_t value) {
  return std::string("\x8a\x08") + std::string(Bytes().number<int64_t>(value));
}
inline std::string global(std::string_view module, std::string_view name) {
  return fmt::format("c{}\n{}\n", module, name);
}
inline std::string tuple(const std::vector<int64_t>& values) {
  std::string out = "(";
  for (int64_t value : values) out += integer(value);
  return out + "t";
}
inline std::string storage(std::string_view type, std::string_view key, int64_t elements) {
  return "(" + text("storage") + global("torch", type) + text(key) + text("cpu") + integer(elements) + "tQ";
}
inline std::string tensor(const std::string& storage, int64_t offset, const std::vector<int64_t>& size,
                          const std::vector<int64_t>& stride) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) + tuple(size) +
         tuple(stride) + "\x89" + global("collections", "OrderedDict") + ")RtR";
}
/// A float tensor [2, 3] in storage 0.
inline std::string some_tensor() { return tensor(storage("FloatStorage", "0", 6), 0, {2, 3}, {3, 1}); }
/// {key: value, ...} of pieces.
inline std::string dict(const std::string& items) { return "}(" + items + "u"; }
inline std::string whole(const std::string& body) { return "\x80\x02" + body + "."; }

}  // namespace pickle

/// A checkpoint with the pickle `body` (without protocol and STOP) and six floats 1, 2, ... as storage 0.
inline Bytes pth_file(const std::string& body) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  return ZipBuilder()
      .add("archive/data.pkl", pickle::whole(body))
      .add("archive/data/0", std::string_view(reinterpret_cast<const char*>(values.data()), 24))
      .finish();
}

/// A GGUF file whose every claim can be made false.
struct GgufBuilder {
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count = {}, metadata_count = {};
  Bytes metadata, tensors;
  std::string data;
  uint64_t alignment = 32;

  GgufBuilder& key(std::string_view name, uint32_t type) {
    metadata.number<uint64_t>(name.size()).raw(name).number<uint32_t>(type);
    ++metadata_entries;
    return *this;
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                      uint64_t offset) {
    tensors.number<uint64_t>(name.size()).raw(name).number<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (uint64_t dim : dims) tensors.number<uint64_t>(dim);
    tensors.number<uint32_t>(type).number<uint64_t>(offset);
    ++tensor_entries;
    return *this;
  }
  Bytes finish() const {
    Bytes out;
    out.raw("GGUF").number<uint32_t>(version).number<uint64_t>(tensor_count.value_or(tensor_entries));
    out.number<uint64_t>(metadata_count.value_or(metadata_entries)).raw(metadata).raw(tensors);
    out.append((alignment - out.size() % alignment) % alignment, '\0');
    out.raw(data);
    return out;
  }

  uint64_t tensor_entries = 0, metadata_entries = 0;
};

}  // namespace rwkvx
