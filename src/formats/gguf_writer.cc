#include <algorithm>
#include <limits>
#include <unordered_set>

#include "base/error.h"
#include "formats/gguf_types.h"
#include "formats/tensor_output.h"

namespace rwkvx {
namespace {

constexpr uint32_t kVersion = 3;

uint64_t padding(uint64_t size) {
  return (kGgufDefaultAlignment - size % kGgufDefaultAlignment) % kGgufDefaultAlignment;
}

bool fits_i32(int64_t value) {
  return value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max();
}

/// The part of the file in front of the data.
class Header {
 public:
  void text(std::string_view value) {
    number(static_cast<uint64_t>(value.size()));
    bytes_ += value;
  }
  template <typename T>
  void number(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void raw(std::string_view value) { bytes_ += value; }
  void type(GgufValue value) { number(static_cast<uint32_t>(value)); }

  void value(bool v) {
    type(GgufValue::boolean);
    number(static_cast<uint8_t>(v));
  }
  void value(int64_t v) {
    type(fits_i32(v) ? GgufValue::i32 : GgufValue::i64);
    fits_i32(v) ? number(static_cast<int32_t>(v)) : number(v);
  }
  void value(uint64_t v) {
    const bool fits = v <= std::numeric_limits<uint32_t>::max();
    type(fits ? GgufValue::u32 : GgufValue::u64);
    fits ? number(static_cast<uint32_t>(v)) : number(v);
  }
  void value(double v) {
    type(GgufValue::f32);
    number(static_cast<float>(v));
  }
  void value(const std::string& v) {
    type(GgufValue::text);
    text(v);
  }
  void value(const std::vector<int64_t>& v) {
    const bool fits = std::all_of(v.begin(), v.end(), fits_i32);
    array(fits ? GgufValue::i32 : GgufValue::i64, v.size());
    for (int64_t x : v) fits ? number(static_cast<int32_t>(x)) : number(x);
  }
  void value(const std::vector<double>& v) {
    array(GgufValue::f32, v.size());
    for (double x : v) number(static_cast<float>(x));
  }
  void value(const std::vector<std::string>& v) {
    array(GgufValue::text, v.size());
    for (const std::string& x : v) text(x);
  }

  const std::string& bytes() const { return bytes_; }

 private:
  void array(GgufValue element, size_t count) {
    type(GgufValue::array);
    type(element);
    number(static_cast<uint64_t>(count));
  }
  std::string bytes_;
};

/// Entries to write: without the alignment, which is this writer's own.
Metadata checked_metadata(const Path& path, const Metadata& metadata) {
  Metadata entries;
  std::unordered_set<std::string_view> keys;
  for (const auto& entry : metadata) {
    if (!keys.insert(entry.first).second) {
      fail("cannot write {}: metadata \"{}\" is there twice", path.string(), printable(entry.first));
    }
    if (entry.first != kGgufAlignmentKey) entries.push_back(entry);
  }
  return entries;
}

void write_tensor_info(Header& header, const Path& path, const TensorToWrite& t, uint64_t offset) {
  const auto type = ggml_type(t.dtype);
  const std::string shown = printable(t.name);
  if (!type) {
    fail("cannot write {}: GGUF has no type {} (tensor \"{}\")", path.string(), name(t.dtype), shown);
  }
  if (t.name.size() > kGgufTensorNameLimit) {
    fail("cannot write {}: the name of tensor \"{}\" is longer than the {} bytes that GGUF allows",
         path.string(), shown, kGgufTensorNameLimit);
  }
  static_assert(Shape::kMaxRank <= kGgufMaxRank);
  if (is_quantised(t.dtype) && t.shape.dim(-1) % info(t.dtype).block_elements != 0) {
    fail(
        "cannot write {}: tensor \"{}\" of shape {} has rows that are no multiple of {} elements, as {} "
        "needs",
        path.string(), shown, t.shape.str(), info(t.dtype).block_elements, name(t.dtype));
  }
  header.text(t.name);
  header.number(static_cast<uint32_t>(t.shape.rank()));
  for (int i = t.shape.rank(); i-- > 0;) header.number(static_cast<uint64_t>(t.shape[i]));
  header.number(*type);
  header.number(offset);
}

}  // namespace

void write_gguf(const Path& path, std::span<const TensorToWrite> tensors, const Metadata& metadata,
                const Progress& progress) {
  const auto sizes = checked_sizes(path, tensors);
  const Metadata entries = checked_metadata(path, metadata);
  Header header;
  header.raw(kGgufMagic);
  header.number(kVersion);
  header.number(static_cast<uint64_t>(tensors.size()));
  header.number(static_cast<uint64_t>(entries.size()));
  for (const auto& [key, value] : entries) {
    header.text(key);
    std::visit([&](const auto& v) { header.value(v); }, value);
  }
  uint64_t offset = 0, total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    write_tensor_info(header, path, tensors[i], offset);
    offset += sizes[i] + padding(sizes[i]);
    total += sizes[i];
  }

  TensorOutput out(path, total, progress);
  out.file.write(header.bytes());
  out.write_zeros(padding(header.bytes().size()));
  for (size_t i = 0; i < tensors.size(); ++i) {
    out.write_data(TensorOutput::data_of(tensors[i]));
    out.write_zeros(padding(sizes[i]));
  }
  out.file.commit();
}

}  // namespace rwkvx
