#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>

#include "base/error.h"
#include "formats/tensor_output.h"
#include "formats/zip_format.h"

namespace rwkvx {
namespace {

using namespace zip;

constexpr uint64_t kDataAlignment = 64;  // as torch: what it maps is aligned for every type and for SIMD

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

uint32_t crc(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(::crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

std::string_view storage_class(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "FloatStorage";
    case DType::f64:
      return "DoubleStorage";
    case DType::bf16:
      return "BFloat16Storage";
    case DType::f16:
      return "HalfStorage";
    case DType::i8:
      return "CharStorage";
    case DType::u8:
      return "ByteStorage";
    case DType::i16:
      return "ShortStorage";
    case DType::i32:
      return "IntStorage";
    case DType::i64:
      return "LongStorage";
    default:
      return "";
  }
}

/// The pickle (protocol 2) of {name: tensor, ...}, tensor i in storage i.
class DictPickler {
 public:
  DictPickler() { out_ = "\x80\x02}("; }

  void add(const TensorToWrite& t, size_t storage) {
    text(t.name);
    global("torch._utils", "_rebuild_tensor_v2");
    out_ += '(';
    out_ += '(';
    text("storage");
    global("torch", storage_class(t.dtype));
    text(std::to_string(storage));
    text("cpu");
    integer(t.shape.elements());
    out_ += "tQ";  // TUPLE, BINPERSID
    integer(0);    // offset
    std::array<int64_t, Shape::kMaxRank> strides{};
    int64_t stride = 1;
    for (int i = t.shape.rank(); i-- > 0;) {
      strides[static_cast<size_t>(i)] = stride;
      stride *= std::max<int64_t>(t.shape[i], 1);
    }
    tuple(t.shape.dims());
    tuple(std::span<const int64_t>(strides.data(), static_cast<size_t>(t.shape.rank())));
    out_ += '\x89';  // requires_grad: False
    global("collections", "OrderedDict");
    out_ += ")R";  // of no arguments: no hooks
    out_ += "tR";
  }

  std::string finish() && {
    out_ += "u.";  // SETITEMS, STOP
    return std::move(out_);
  }

 private:
  void text(std::string_view value) {
    out_ += 'X';
    append(out_, static_cast<uint32_t>(value.size()));
    out_ += value;
  }
  void global(std::string_view module, std::string_view name) {
    out_ += fmt::format("c{}\n{}\n", module, name);
  }
  void integer(int64_t value) {
    if (value <= std::numeric_limits<int32_t>::max()) {
      out_ += 'J';
      append(out_, static_cast<int32_t>(value));
    } else {
      out_ += "\x8a\x08";  // LONG1
      append(out_, value);
    }
  }
  void tuple(std::span<const int64_t> values) {
    out_ += '(';
    for (int64_t value : values) integer(value);
    out_ += 't';
  }
  std::string out_;
};

/// Stored entries with aligned data, as torch.save lays them out: the local header's extra field is as long
/// as needed.
class ZipOutput {
 public:
  ZipOutput(TensorOutput& out, std::string folder) : out_(out), folder_(std::move(folder)) {}

  void begin_entry(std::string_view name, uint64_t size, uint32_t checksum) {
    Entry entry{folder_ + "/" + std::string(name), out_.file.size(), size, checksum};
    std::string extra;
    if (size >= kIn64) append_extra64(extra, {size, size});
    const uint64_t unpadded = entry.header + kLocalHeaderBytes + entry.name.size() + extra.size() + 4;
    const auto pad = static_cast<uint16_t>((kDataAlignment - unpadded % kDataAlignment) % kDataAlignment);
    append(extra, uint16_t{0x4246});  // "FB", as torch marks its padding
    append(extra, pad);
    extra.append(pad, 'Z');

    std::string header;
    append(header, kLocalHeader);
    append_common(header, entry);
    append(header, static_cast<uint16_t>(extra.size()));
    out_.file.write(header + entry.name + extra);
    entries_.push_back(std::move(entry));
  }

  void write_entry(std::string_view name, std::string_view contents) {
    begin_entry(name, contents.size(), crc(std::as_bytes(std::span(contents))));
    out_.file.write(contents);
  }

  void finish() {
    const uint64_t begin = out_.file.size();
    for (const Entry& entry : entries_) write_central(entry);
    const uint64_t end = out_.file.size(), size = end - begin, count = entries_.size();

    // torch always writes the 64-bit records too; readers that do not know them use the last one.
    std::string tail;
    append(tail, kEndOfDirectory64);
    append(tail, kEndOfDirectory64Bytes - 12);  // own size, without what came so far
    append(tail, kVersion);
    append(tail, kVersion);
    append(tail, uint32_t{0});  // disks
    append(tail, uint32_t{0});
    append(tail, count);
    append(tail, count);
    append(tail, size);
    append(tail, begin);
    append(tail, kEndLocator64);
    append(tail, uint32_t{0});
    append(tail, end);
    append(tail, uint32_t{1});
    append(tail, kEndOfDirectory);
    append(tail, uint32_t{0});  // disks
    const auto short_count = static_cast<uint16_t>(std::min<uint64_t>(count, kIn64Short));
    append(tail, short_count);
    append(tail, short_count);
    append(tail, static_cast<uint32_t>(std::min<uint64_t>(size, kIn64)));
    append(tail, static_cast<uint32_t>(std::min<uint64_t>(begin, kIn64)));
    append(tail, uint16_t{0});  // no comment
    out_.file.write(tail);
  }

 private:
  struct Entry {
    std::string name;
    uint64_t header, size;
    uint32_t checksum;
  };

  static constexpr uint16_t kVersion = 45;  // the first with zip64
  static constexpr uint16_t kDate = 0x21;   // 1 January 1980: equal models give equal files

  static void append_extra64(std::string& extra, std::initializer_list<uint64_t> values) {
    append(extra, kExtra64);
    append(extra, static_cast<uint16_t>(8 * values.size()));
    for (uint64_t value : values) append(extra, value);
  }

  /// From the version to the length of the name: the same in both headers.
  static void append_common(std::string& header, const Entry& entry) {
    const auto size = static_cast<uint32_t>(std::min<uint64_t>(entry.size, kIn64));
    append(header, kVersion);
    append(header, kFlagUtf8);
    append(header, kStored);
    append(header, uint16_t{0});  // time
    append(header, kDate);
    append(header, entry.checksum);
    append(header, size);
    append(header, size);
    append(header, static_cast<uint16_t>(entry.name.size()));
  }

  void write_central(const Entry& entry) {
    std::string extra;
    const bool big = entry.size >= kIn64, far = entry.header >= kIn64;
    if (big && far) append_extra64(extra, {entry.size, entry.size, entry.header});
    if (big && !far) append_extra64(extra, {entry.size, entry.size});
    if (!big && far) append_extra64(extra, {entry.header});
    std::string header;
    append(header, kCentralHeader);
    append(header, kVersion);
    append_common(header, entry);
    append(header, static_cast<uint16_t>(extra.size()));
    append(header, uint16_t{0});  // comment
    append(header, uint16_t{0});  // disk
    append(header, uint16_t{0});  // attributes
    append(header, uint32_t{0});
    append(header, far ? kIn64 : static_cast<uint32_t>(entry.header));
    out_.file.write(header + entry.name + extra);
  }

  TensorOutput& out_;
  std::string folder_;
  std::vector<Entry> entries_;
};

/// torch.save names the folder after the file.
std::string folder_name(const Path& path) {
  std::string stem = path.stem().string();
  if (stem.empty() || stem.size() > 200 || stem.starts_with('.')) stem = "archive";
  return stem;
}

}  // namespace

void write_pth(const Path& path, std::span<const TensorToWrite> tensors, const Progress& progress) {
  const auto sizes = checked_sizes(path, tensors);
  uint64_t total = 0;
  DictPickler pickler;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorToWrite& t = tensors[i];
    if (storage_class(t.dtype).empty()) {
      fail("cannot write {}: torch has no type {} (tensor \"{}\"); choose f32, f16 or bf16", path.string(),
           name(t.dtype), printable(t.name));
    }
    pickler.add(t, i);
    total += sizes[i];
  }

  TensorOutput out(path, total, progress);
  ZipOutput archive(out, folder_name(path));
  archive.write_entry("data.pkl", std::move(pickler).finish());
  archive.write_entry("byteorder", "little");
  for (size_t i = 0; i < tensors.size(); ++i) {
    const ConstView data = TensorOutput::data_of(tensors[i]);
    archive.begin_entry(fmt::format("data/{}", i), sizes[i], crc(data.raw()));
    out.write_data(data);
  }
  archive.write_entry("version", "3\n");
  archive.finish();
  out.file.commit();
}

}  // namespace rwkvx
