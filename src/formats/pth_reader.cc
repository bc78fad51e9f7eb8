#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "base/checked.h"
#include "base/error.h"
#include "formats/file_bytes.h"
#include "formats/pickle_reader.h"
#include "formats/zip_directory.h"
#include "tensor/buffer.h"

namespace rwkvx {
namespace {

constexpr uint64_t kPickleLimit = uint64_t{64} << 20;
/// Tensors that are copied because of their strides may need this much, and a few times the file: a storage
/// of one number expanded to [2^40] must not fill the memory.
constexpr uint64_t kExpandedBytes = uint64_t{64} << 20;
constexpr uint64_t kExpandedFiles = 4;

std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Whether elements lie as a row-major array's do. Dimensions of one element may have any stride.
bool is_contiguous(const PickledTensor& t) {
  int64_t expected = 1;
  for (size_t i = t.size.size(); i-- > 0;) {
    if (t.size[i] == 1) continue;
    if (t.stride[i] != expected) return false;
    expected *= t.size[i];  // the product was checked
  }
  return true;
}

/// One more than the highest element that the tensor reaches; nothing on overflow. The tensor is not empty.
std::optional<uint64_t> reach(const PickledTensor& t) {
  std::optional<uint64_t> end = checked_add(t.offset, 1);
  for (size_t i = 0; end && i < t.size.size(); ++i) {
    const auto span = checked_mul(static_cast<uint64_t>(t.size[i] - 1), static_cast<uint64_t>(t.stride[i]));
    end = span ? checked_add(*end, *span) : std::nullopt;
  }
  return end;
}

/// Copies a strided tensor into row-major order, a row of the last dimension at a time.
void gather(const PickledTensor& t, size_t element, const std::byte* storage, std::byte* out) {
  const size_t rank = t.size.size();
  std::vector<int64_t> index(rank, 0);
  const int64_t row = rank == 0 ? 1 : t.size[rank - 1];
  const size_t step = rank == 0 ? 0 : static_cast<size_t>(t.stride[rank - 1]) * element;
  while (true) {
    uint64_t at = t.offset;
    for (size_t i = 0; i + 1 < rank; ++i) at += static_cast<uint64_t>(index[i] * t.stride[i]);
    const std::byte* from = storage + at * element;
    for (int64_t i = 0; i < row; ++i) {
      std::memcpy(out, from + static_cast<size_t>(i) * step, element);
      out += element;
    }
    size_t d = rank < 2 ? 0 : rank - 1;
    while (d > 0 && ++index[d - 1] == t.size[d - 1]) index[--d] = 0;
    if (d == 0) return;
  }
}

class PthParser {
 public:
  explicit PthParser(const FileBytes& file) : file_(file), path_(file.path.string()) {
    catalog_.path = file.path;
    catalog_.format = FileFormat::pth;
    catalog_.keep(file.owner);
  }

  Catalog parse() {
    for (ZipEntry& entry : read_zip_directory(file_))
      entries_.emplace(std::move(entry.name), Storage{entry.begin, entry.size});
    find_archive();
    check_byte_order();
    const auto pickle = entry_bytes(entries_.at(prefix_ + "data.pkl"));
    if (pickle.size() > kPickleLimit) {
      fail("{}: its data.pkl of {} bytes is larger than that of any model; save the model's state_dict alone",
           path_, pickle.size());
    }
    for (const PickledTensor& t : read_pickle(path_, pickle)) add(t);
    return std::move(catalog_);
  }

 private:
  struct Storage {
    uint64_t begin = 0, size = 0;
    const std::byte* aligned = nullptr;  // its copy, where it was misaligned
  };

  std::span<const std::byte> entry_bytes(const Storage& entry) const {
    return file_.bytes.subspan(static_cast<size_t>(entry.begin), static_cast<size_t>(entry.size));
  }

  /// torch.save puts everything into one folder with a name of its choice.
  void find_archive() {
    constexpr std::string_view kPickle = "/data.pkl";
    bool found = false;
    for (const auto& [name, entry] : entries_) {
      if (!name.ends_with(kPickle) || name.find('/') != name.size() - kPickle.size()) continue;
      if (found) fail("{}: has two data.pkl; the file is damaged or forged", path_);
      found = true;
      prefix_ = name.substr(0, name.size() - kPickle.size() + 1);
    }
    if (!found) {
      fail(
          "{} is a zip archive, but not one of torch.save: it has no data.pkl; give a checkpoint that "
          "torch.save "
          "wrote, or unpack the archive",
          path_);
    }
  }

  void check_byte_order() const {
    const auto it = entries_.find(prefix_ + "byteorder");
    if (it == entries_.end()) return;
    const std::string_view order = as_text(entry_bytes(it->second));
    if (order == "little") return;
    if (order == "big") {
      fail(
          "{}: was saved on a big-endian machine, which is not supported; load it in Python and save it as "
          "safetensors",
          path_);
    }
    fail("{}: has the unknown byte order \"{}\"; the file is damaged", path_, printable(order, 16));
  }

  void add(const PickledTensor& t) {
    const std::string shown = printable(t.name);
    if (t.size.size() > Shape::kMaxRank) {
      fail("{}: tensor \"{}\" has {} dimensions; at most {} are supported", path_, shown, t.size.size(),
           Shape::kMaxRank);
    }
    const Shape shape(t.size);
    const size_t element = info(t.dtype).block_bytes;
    const auto elements = checked_elements(t.size);
    const auto bytes = elements ? checked_bytes(t.dtype, *elements) : std::nullopt;
    if (!bytes) fail("{}: tensor \"{}\" has the impossible shape {}", path_, shown, shape.str());

    const auto it = entries_.find(prefix_ + "data/" + t.storage);
    if (it == entries_.end()) {
      fail("{}: tensor \"{}\" needs the zip entry \"{}data/{}\", which is missing; the file is damaged",
           path_, shown, printable(prefix_), printable(t.storage));
    }
    Storage& storage = it->second;
    if (checked_mul(t.storage_elements, element) != storage.size) {
      fail(
          "{}: tensor \"{}\" has a storage of {} elements of type {}, but its zip entry has {} bytes; the "
          "file is "
          "damaged or forged",
          path_, shown, t.storage_elements, name(t.dtype), storage.size);
    }
    if (*elements == 0) return catalog_.add(t.name, ConstView(file_.bytes.data(), t.dtype, shape));
    const auto end = reach(t);
    if (!end || *end > t.storage_elements) {
      fail(
          "{}: tensor \"{}\" of shape {} reaches past its storage of {} elements; the file is damaged or "
          "forged",
          path_, shown, shape.str(), t.storage_elements);
    }
    if (is_contiguous(t)) {
      const std::byte* data = aligned_data(storage, t.dtype, shown);
      return catalog_.add(t.name, ConstView(data + t.offset * element, t.dtype, shape));
    }
    count_copy(*bytes, shown);
    auto copy = std::make_shared<Buffer>(t.dtype, shape);
    gather(t, element, file_.bytes.data() + storage.begin, static_cast<std::byte*>(copy->view().data()));
    catalog_.add(t.name, std::as_const(*copy).view());
    catalog_.keep(std::move(copy));
  }

  /// The storage's elements, copied where the file has them misaligned (as zip tools do that pack it anew).
  const std::byte* aligned_data(Storage& storage, DType dtype, const std::string& shown) {
    const std::byte* data = file_.bytes.data() + storage.begin;
    if (reinterpret_cast<uintptr_t>(data) % element_alignment(dtype) == 0) return data;
    if (storage.aligned == nullptr) {
      count_copy(storage.size, shown);
      auto copy = std::make_shared<Buffer>(DType::u8, Shape{static_cast<int64_t>(storage.size)});
      std::memcpy(copy->view().data(), data, static_cast<size_t>(storage.size));
      storage.aligned = static_cast<const std::byte*>(copy->view().data());
      catalog_.keep(std::move(copy));
    }
    return storage.aligned;
  }

  void count_copy(uint64_t bytes, const std::string& shown) {
    const auto total = checked_add(copied_, bytes);
    if (!total || *total > kExpandedBytes + kExpandedFiles * file_.bytes.size()) {
      fail(
          "{}: tensor \"{}\" would expand to {} bytes, far more than the file of {} bytes holds; save it "
          "contiguous",
          path_, shown, bytes, file_.bytes.size());
    }
    copied_ = *total;
  }

  const FileBytes& file_;
  std::string path_, prefix_;
  Catalog catalog_;
  std::unordered_map<std::string, Storage> entries_;
  uint64_t copied_ = 0;
};

}  // namespace

Catalog parse_pth(const FileBytes& file) { return PthParser(file).parse(); }

}  // namespace rwkvx
