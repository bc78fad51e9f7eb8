#include <algorithm>
#include <bit>
#include <cstring>

#include "base/checked.h"
#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/file_bytes.h"
#include "formats/gguf_types.h"

namespace rwkvx {
namespace {

/// Longest array of metadata; the largest vocabularies have a few hundred thousand entries.
constexpr uint64_t kArrayLimit = uint64_t{1} << 26;

std::string_view read_text(ByteReader& in, std::string_view what) {
  return in.take_text(in.read<uint64_t>(what), what);
}

template <typename T, typename Element>
void read_numbers(ByteReader& in, uint64_t count, std::vector<Element>& out) {
  const auto bytes = in.take(count * sizeof(T), "a metadata array");
  out.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    T value;
    std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
    if constexpr (std::is_same_v<T, uint64_t>) {
      if (value > INT64_MAX) fail("{}: a metadata array holds {}, which is too large", in.where(), value);
    }
    out[i] = static_cast<Element>(value);  // NOLINT(bugprone-signed-char-misuse): int8_t is a number here
  }
}

class GgufParser {
 public:
  explicit GgufParser(const FileBytes& file) : file_(file), in_(file.path.string(), file.bytes) {
    catalog_.path = file.path;
    catalog_.format = FileFormat::gguf;
    catalog_.keep(file.owner);
  }

  Catalog parse() {
    read_header();
    for (uint64_t i = 0; i < metadata_count_; ++i) read_metadata_entry();
    read_alignment();
    tensors_.reserve(static_cast<size_t>(tensor_count_));
    for (uint64_t i = 0; i < tensor_count_; ++i) read_tensor_info();
    place_tensors();
    return std::move(catalog_);
  }

 private:
  const std::string& path() const { return in_.where(); }

  void read_header() {
    if (in_.take_text(4, "its first bytes") != kGgufMagic) fail("{} is not a GGUF file", path());
    const auto version = in_.read<uint32_t>("its version");
    if ((version & 0xffffu) == 0 && version != 0) {
      fail(
          "{} is a big-endian GGUF file; only little-endian ones can be read: convert it on the machine it "
          "is from",
          path());
    }
    if (version != 2 && version != 3) {
      fail("{}: GGUF version {} is not supported (2 and 3 are); convert the model again", path(), version);
    }
    tensor_count_ = in_.read<uint64_t>("its header");
    metadata_count_ = in_.read<uint64_t>("its header");
    // The smallest entries: a key of no letters, a type and a byte; a tensor name, no dimensions, type and
    // offset.
    check_count(metadata_count_, 8 + 4 + 1, "metadata entries");
    check_count(tensor_count_, 8 + 4 + 4 + 8, "tensors");
  }

  void check_count(uint64_t count, uint64_t smallest, std::string_view what) const {
    if (count > in_.remaining() / smallest) {
      fail("{}: says it has {} {}, more than fit into its {} bytes; it is cut short or damaged", path(),
           count, what, file_.bytes.size());
    }
  }

  void read_metadata_entry() {
    std::string key(read_text(in_, "a metadata key"));
    if (catalog_.metadata.contains(key)) {
      fail("{}: metadata \"{}\" is there twice; the file is damaged or forged", path(), printable(key));
    }
    const auto type = in_.read<uint32_t>("a metadata type");
    MetadataValue value = read_value(key, type);
    catalog_.metadata.emplace(std::move(key), std::move(value));
  }

  bool read_bool(const std::string& key) {
    const auto value = in_.read<uint8_t>("a metadata value");
    if (value > 1)
      fail("{}: metadata \"{}\" is a truth value of {}; the file is damaged", path(), printable(key), value);
    return value == 1;
  }

  MetadataValue read_value(const std::string& key, uint32_t type) {
    constexpr std::string_view kWhat = "a metadata value";
    switch (static_cast<GgufValue>(type)) {
      case GgufValue::u8:
        return uint64_t{in_.read<uint8_t>(kWhat)};
      case GgufValue::u16:
        return uint64_t{in_.read<uint16_t>(kWhat)};
      case GgufValue::u32:
        return uint64_t{in_.read<uint32_t>(kWhat)};
      case GgufValue::u64:
        return in_.read<uint64_t>(kWhat);
      case GgufValue::i8:
        return int64_t{in_.read<int8_t>(kWhat)};
      case GgufValue::i16:
        return int64_t{in_.read<int16_t>(kWhat)};
      case GgufValue::i32:
        return int64_t{in_.read<int32_t>(kWhat)};
      case GgufValue::i64:
        return in_.read<int64_t>(kWhat);
      case GgufValue::f32:
        return double{in_.read<float>(kWhat)};
      case GgufValue::f64:
        return in_.read<double>(kWhat);
      case GgufValue::boolean:
        return read_bool(key);
      case GgufValue::text:
        return std::string(read_text(in_, kWhat));
      case GgufValue::array:
        return read_array(key);
    }
    fail("{}: metadata \"{}\" has the unknown type {}; the file is damaged or from a later version of GGUF",
         path(), printable(key), type);
  }

  MetadataValue read_array(const std::string& key) {
    const auto type = in_.read<uint32_t>("a metadata array");
    const auto count = in_.read<uint64_t>("a metadata array");
    if (type == static_cast<uint32_t>(GgufValue::array)) {
      fail("{}: metadata \"{}\" is an array of arrays, which is not supported", path(), printable(key));
    }
    const auto smallest = gguf_value_bytes(type);
    if (!smallest) {
      fail("{}: metadata \"{}\" is an array of the unknown type {}; the file is damaged", path(),
           printable(key), type);
    }
    check_count(count, *smallest, "entries in an array of metadata");
    if (count > kArrayLimit) {
      fail("{}: metadata \"{}\" has {} entries; more than {} are not read", path(), printable(key), count,
           kArrayLimit);
    }
    std::vector<int64_t> whole;
    std::vector<double> fractions;
    switch (static_cast<GgufValue>(type)) {
      case GgufValue::u8:
        read_numbers<uint8_t>(in_, count, whole);
        return whole;
      case GgufValue::i8:
        read_numbers<int8_t>(in_, count, whole);
        return whole;
      case GgufValue::u16:
        read_numbers<uint16_t>(in_, count, whole);
        return whole;
      case GgufValue::i16:
        read_numbers<int16_t>(in_, count, whole);
        return whole;
      case GgufValue::u32:
        read_numbers<uint32_t>(in_, count, whole);
        return whole;
      case GgufValue::i32:
        read_numbers<int32_t>(in_, count, whole);
        return whole;
      case GgufValue::u64:
        read_numbers<uint64_t>(in_, count, whole);
        return whole;
      case GgufValue::i64:
        read_numbers<int64_t>(in_, count, whole);
        return whole;
      case GgufValue::f32:
        read_numbers<float>(in_, count, fractions);
        return fractions;
      case GgufValue::f64:
        read_numbers<double>(in_, count, fractions);
        return fractions;
      case GgufValue::boolean:
        whole.resize(static_cast<size_t>(count));
        for (int64_t& value : whole) value = read_bool(key);
        return whole;
      default:
        break;
    }
    std::vector<std::string> texts;
    texts.reserve(static_cast<size_t>(count));
    for (uint64_t i = 0; i < count; ++i)
      texts.emplace_back(read_text(in_, "an array of text in its metadata"));
    return texts;
  }

  void read_alignment() {
    const std::string key(kGgufAlignmentKey);
    if (const uint64_t* alignment = catalog_.number(key)) {
      if (!std::has_single_bit(*alignment) || *alignment > (uint64_t{1} << 31)) {
        fail("{}: {} is {}; it must be a power of two", path(), key, *alignment);
      }
      alignment_ = *alignment;
    }
  }

  void read_tensor_info() {
    TensorInfo t;
    t.name = read_text(in_, "a tensor name");
    const std::string shown = printable(t.name);
    const auto rank = in_.read<uint32_t>("a tensor's shape");
    if (rank > Shape::kMaxRank) {
      fail("{}: tensor \"{}\" has {} dimensions; at most {} are supported", path(), shown, rank,
           Shape::kMaxRank);
    }
    std::vector<int64_t> dims(rank);
    for (uint32_t i = 0; i < rank; ++i) {
      const auto dim = in_.read<uint64_t>("a tensor's shape");
      if (dim > INT64_MAX)
        fail("{}: tensor \"{}\" has a dimension of {}, which is too large", path(), shown, dim);
      dims[rank - 1 - i] = static_cast<int64_t>(dim);  // GGUF writes the contiguous dimension first
    }
    const auto type = in_.read<uint32_t>("a tensor's type");
    const auto dtype = dtype_of_ggml(type);
    if (!dtype) {
      fail(
          "{}: tensor \"{}\" has the type {}, which is not supported; convert the model again as F16, Q8_0 "
          "or Q4_K",
          path(), shown, ggml_type_name(type));
    }
    t.dtype = *dtype;
    t.offset = in_.read<uint64_t>("a tensor's offset");
    t.shape = Shape(dims);
    const auto elements = checked_elements(dims);
    const bool whole_blocks =
        !is_quantised(t.dtype) || (rank > 0 && dims.back() % info(t.dtype).block_elements == 0);
    const auto bytes = elements && whole_blocks ? checked_bytes(t.dtype, *elements) : std::nullopt;
    if (!bytes) {
      fail("{}: tensor \"{}\" has the shape {}, which is impossible for type {}", path(), shown,
           t.shape.str(), rwkvx::name(t.dtype));
    }
    t.bytes = *bytes;
    tensors_.push_back(t);
  }

  void place_tensors() {
    if (tensors_.empty()) return;
    const uint64_t start = (in_.position() + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t size = file_.bytes.size() > start ? file_.bytes.size() - start : 0;
    std::vector<Extent> extents;
    for (const TensorInfo& t : tensors_) {
      if (t.offset % alignment_ != 0) {
        fail(
            "{}: tensor \"{}\" starts at {}, which is no multiple of the file's alignment of {}; the file is "
            "damaged",
            path(), printable(t.name), t.offset, alignment_);
      }
      if (!in_bounds(t.offset, t.bytes, size)) {
        fail(
            "{}: tensor \"{}\" needs {} bytes from byte {} of the data, but only {} bytes are there; the "
            "file is cut "
            "short or damaged: copy or download it again",
            path(), printable(t.name), t.bytes, t.offset, size);
      }
      extents.push_back({t.offset, t.offset + t.bytes, t.name});
    }
    check_disjoint(file_.path, "tensors", std::move(extents));
    const auto data = file_.bytes.subspan(static_cast<size_t>(std::min<uint64_t>(start, file_.bytes.size())));
    for (const TensorInfo& t : tensors_) {
      add_tensor(catalog_, std::string(t.name), t.dtype, t.shape,
                 data.subspan(static_cast<size_t>(t.offset), static_cast<size_t>(t.bytes)));
    }
  }

  struct TensorInfo {
    std::string_view name;
    DType dtype = DType::f32;
    Shape shape;
    uint64_t offset = 0, bytes = 0;
  };

  const FileBytes& file_;
  ByteReader in_;
  Catalog catalog_;
  uint64_t tensor_count_ = 0, metadata_count_ = 0;
  uint64_t alignment_ = kGgufDefaultAlignment;
  std::vector<TensorInfo> tensors_;
};

}  // namespace

Catalog parse_gguf(const FileBytes& file) { return GgufParser(file).parse(); }

}  // namespace rwkvx
