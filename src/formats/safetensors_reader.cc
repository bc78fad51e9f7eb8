#include <cstring>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/file_bytes.h"
#include "formats/safetensors_types.h"

namespace rwkvx {
namespace {

struct HeaderTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

/// Walks the header {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__":
/// {"k": "v"}} event by event. Not as a document, because there the last of two equal names silently wins.
class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(std::string path) : path_(std::move(path)) {}

  std::vector<HeaderTensor> tensors;
  std::unordered_map<std::string, MetadataValue> metadata;

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a truth value"); }
  bool number_integer(number_integer_t value) override {
    if (level_ == Level::shape || level_ == Level::offsets) {
      fail("{}: {} has the negative number {} in its {}", path_, here(), value, field_);
    }
    return scalar("a number");
  }
  bool number_float(number_float_t, const string_t&) override {
    if (level_ == Level::shape || level_ == Level::offsets) {
      fail("{}: {} has a number in its {} that is no whole number of 64 bits", path_, here(), field_);
    }
    return scalar("a number");
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (level_ == Level::shape) {
      auto& shape = tensors.back().shape;
      if (value > INT64_MAX) fail("{}: {} has a dimension of {}, which is too large", path_, here(), value);
      if (shape.size() == Shape::kMaxRank) {
        fail("{}: {} has more than {} dimensions", path_, here(), Shape::kMaxRank);
      }
      shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (level_ == Level::offsets) {
      auto& offsets = tensors.back().offsets;
      if (offsets.size() == 2) fail("{}: {} has more than two data_offsets", path_, here());
      offsets.push_back(value);
      return true;
    }
    return scalar("a number");
  }
  bool string(string_t& value) override {
    if (level_ == Level::metadata) {
      metadata.emplace(field_, std::move(value));
      return true;
    }
    if (level_ == Level::tensor && field_ == "dtype") {
      tensors.back().dtype = std::move(value);
      tensors.back().has_dtype = true;
      return true;
    }
    return scalar("text");
  }
  bool binary(binary_t&) override { return scalar("binary data"); }

  bool start_object(size_t) override {
    switch (level_) {
      case Level::start:
        level_ = Level::top;
        return true;
      case Level::top:
        if (name_ == "__metadata__") {
          level_ = Level::metadata;
        } else {
          level_ = Level::tensor;
          tensors.emplace_back().name = name_;
          fields_.clear();
        }
        return true;
      default:
        return scalar("an object");
    }
  }
  bool end_object() override {
    level_ = level_ == Level::top ? Level::start : Level::top;
    return true;
  }
  bool start_array(size_t) override {
    if (level_ == Level::tensor && field_ == "shape") {
      level_ = Level::shape;
      tensors.back().has_shape = true;
      return true;
    }
    if (level_ == Level::tensor && field_ == "data_offsets") {
      level_ = Level::offsets;
      tensors.back().has_offsets = true;
      return true;
    }
    return scalar("an array");
  }
  bool end_array() override {
    level_ = Level::tensor;
    return true;
  }
  bool key(string_t& value) override {
    if (level_ == Level::top) {
      if (!names_.insert(value).second) {
        fail("{}: tensor \"{}\" is there twice; the file is damaged or forged", path_, printable(value));
      }
      name_ = std::move(value);
    } else {
      field_ = std::move(value);
      if (level_ == Level::metadata ? metadata.contains(field_) : !fields_.insert(field_).second) {
        fail("{}: {} has \"{}\" twice; the file is damaged or forged", path_, here(), printable(field_));
      }
    }
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    fail("{}: the header is not valid JSON at its byte {}; the file is damaged or not safetensors", path_,
         position);
  }

 private:
  enum class Level { start, top, metadata, tensor, shape, offsets };

  std::string here() const {
    return level_ == Level::metadata ? std::string("__metadata__")
                                     : fmt::format("tensor \"{}\"", printable(name_));
  }
  /// A value that is not where one of its kind belongs. Fields of tensors that later versions add are not
  /// refused.
  bool scalar(std::string_view what) {
    if (level_ == Level::tensor && field_ != "dtype" && field_ != "shape" && field_ != "data_offsets" &&
        what != "an object" && what != "an array") {
      return true;
    }
    if (level_ == Level::start) fail("{}: the header is {} instead of a JSON object", path_, what);
    fail("{}: {} is {} where the safetensors format has something else", path_,
         level_ == Level::top
             ? here()
             : fmt::format("{} in {}", field_.empty() ? "a value" : "\"" + printable(field_) + "\"", here()),
         what);
  }

  std::string path_;
  Level level_ = Level::start;
  std::string name_, field_;
  std::unordered_set<std::string> names_, fields_;
};

}  // namespace

Catalog parse_safetensors(const FileBytes& file) {
  Catalog catalog;
  catalog.path = file.path;
  catalog.format = FileFormat::safetensors;
  catalog.keep(file.owner);
  const std::string path = file.path.string();

  ByteReader reader(path, file.bytes);
  const auto header_length = reader.read<uint64_t>("the length of its header");
  if (header_length > kSafetensorsHeaderLimit) {
    fail(
        "{}: the header says it has {} bytes; no safetensors header is that long: the file is damaged or of "
        "another format",
        path, header_length);
  }
  const std::string_view json = reader.take_text(header_length, "its header");
  HeaderHandler header(path);
  nlohmann::json::sax_parse(json.begin(), json.end(), &header);
  catalog.metadata = std::move(header.metadata);

  const auto data = file.bytes.subspan(static_cast<size_t>(reader.position()));
  std::vector<Extent> extents;
  std::vector<std::pair<DType, Shape>> types;
  for (const HeaderTensor& t : header.tensors) {
    const std::string shown = printable(t.name);
    if (!t.has_dtype || !t.has_shape || !t.has_offsets || t.offsets.size() != 2) {
      fail("{}: tensor \"{}\" has no complete dtype, shape and data_offsets", path, shown);
    }
    const auto dtype = safetensors_dtype(t.dtype);
    if (!dtype) {
      fail("{}: tensor \"{}\" has type {}, which is not supported; save it as BF16, F16 or F32", path, shown,
           printable(t.dtype));
    }
    const auto elements = checked_elements(t.shape);
    const auto bytes = elements ? checked_bytes(*dtype, *elements) : std::nullopt;
    const Shape shape(t.shape);
    if (!bytes) fail("{}: tensor \"{}\" has the impossible shape {}", path, shown, shape.str());
    const uint64_t begin = t.offsets[0], end = t.offsets[1];
    if (begin > end) fail("{}: tensor \"{}\" ends before it begins ({} to {})", path, shown, begin, end);
    if (end > data.size()) {
      fail(
          "{}: tensor \"{}\" ends at byte {} of the data, but only {} bytes are there; the file is cut short "
          "or "
          "damaged: copy or download it again",
          path, shown, end, data.size());
    }
    if (end - begin != *bytes) {
      fail("{}: tensor \"{}\" of shape {} and type {} needs {} bytes, but its data_offsets give {}", path,
           shown, shape.str(), t.dtype, *bytes, end - begin);
    }
    extents.push_back({begin, end, t.name});
    types.emplace_back(*dtype, shape);
  }
  check_disjoint(file.path, "tensors", extents);
  for (size_t i = 0; i < extents.size(); ++i) {
    const auto& [begin, end, tensor] = extents[i];
    add_tensor(catalog, std::string(tensor), types[i].first, types[i].second,
               data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  }
  return catalog;
}

}  // namespace rwkvx
