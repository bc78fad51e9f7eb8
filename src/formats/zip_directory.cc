#include "formats/zip_directory.h"

#include <algorithm>
#include <unordered_set>

#include "base/checked.h"
#include "base/error.h"
#include "formats/byte_reader.h"
#include "formats/zip_format.h"

namespace rwkvx {
namespace {

using namespace zip;

struct Directory {
  uint64_t begin = 0, size = 0, entries = 0;
};

struct CentralEntry {
  std::string_view name;
  uint16_t flags = 0, method = 0;
  uint64_t compressed = 0, size = 0, header = 0;
};

class ZipReader {
 public:
  explicit ZipReader(const FileBytes& file) : file_(file), path_(file.path.string()) {}

  std::vector<ZipEntry> read() {
    const Directory directory = find_directory();
    if (directory.entries > directory.size / kCentralHeaderBytes)
      damaged("its directory is too short for its entries");
    ByteReader in(path_, file_.bytes.first(static_cast<size_t>(directory.begin + directory.size)),
                  directory.begin);
    std::vector<ZipEntry> entries;
    std::vector<Extent> extents;
    std::unordered_set<std::string_view> names;
    entries.reserve(static_cast<size_t>(directory.entries));
    for (uint64_t i = 0; i < directory.entries; ++i) {
      const CentralEntry central = read_central(in);
      check_stored(central);
      if (!names.insert(central.name).second) {
        fail("{}: zip entry \"{}\" is there twice; the file is damaged or forged", path_,
             printable(central.name));
      }
      const uint64_t begin = find_data(central, directory.begin);
      extents.push_back({central.header, begin + central.size, central.name});
      entries.push_back({std::string(central.name), begin, central.size});
    }
    if (in.remaining() != 0) damaged("its directory has more entries than it says");
    check_disjoint(file_.path, "zip entries", std::move(extents));
    return entries;
  }

 private:
  [[noreturn]] void damaged(std::string_view what) const {
    fail("{}: the zip archive is cut short or damaged ({}): copy or download it again", path_, what);
  }

  ByteReader reader_at(uint64_t position) const { return ByteReader(path_, file_.bytes, position); }

  Directory find_directory() const {
    // The end record is last, behind it only a comment of up to 65535 bytes whose length it knows.
    const uint64_t size = file_.bytes.size();
    if (size < kEndOfDirectoryBytes) damaged("it has no end record");
    const uint64_t earliest = size - std::min<uint64_t>(size, kEndOfDirectoryBytes + 0xffff);
    for (uint64_t at = size - kEndOfDirectoryBytes + 1; at-- > earliest;) {
      ByteReader in = reader_at(at);
      if (in.read<uint32_t>("") != kEndOfDirectory) continue;
      const auto disk = in.read<uint16_t>(""), directory_disk = in.read<uint16_t>("");
      const auto entries_here = in.read<uint16_t>(""), entries = in.read<uint16_t>("");
      const auto directory_size = in.read<uint32_t>(""), directory_begin = in.read<uint32_t>("");
      if (in.read<uint16_t>("") != in.remaining()) continue;
      Directory result{directory_begin, directory_size, entries};
      uint64_t end = at;
      if (at >= kEndLocator64Bytes &&
          reader_at(at - kEndLocator64Bytes).read<uint32_t>("") == kEndLocator64) {
        result = read_directory64(at - kEndLocator64Bytes, end);
        if ((directory_begin != kIn64 && directory_begin != result.begin) ||
            (directory_size != kIn64 && directory_size != result.size) ||
            (entries != kIn64Short && entries != result.entries)) {
          damaged("its two end records differ");
        }
      } else if (directory_begin == kIn64 || directory_size == kIn64 || entries == kIn64Short) {
        damaged("its zip64 end record is missing");
      }
      if ((disk != 0 && disk != kIn64Short) || disk != directory_disk || entries_here != entries) {
        fail("{}: is one part of a zip archive of several; join the parts first", path_);
      }
      if (!in_bounds(result.begin, result.size, end))
        damaged("its directory is not where its end record says");
      return result;
    }
    damaged("it has no end record");
  }

  /// Lowers `end` to where the zip64 end record begins.
  Directory read_directory64(uint64_t locator, uint64_t& end) const {
    ByteReader in = reader_at(locator + 4);
    const auto disk = in.read<uint32_t>("");
    const auto record = in.read<uint64_t>("");
    if (disk != 0 || !in_bounds(record, kEndOfDirectory64Bytes, locator))
      damaged("its zip64 end record is out of bounds");
    ByteReader at = reader_at(record);
    if (at.read<uint32_t>("") != kEndOfDirectory64)
      damaged("its zip64 end record is not where its locator says");
    at.take(8 + 2 + 2 + 4 + 4, "");  // own size, versions, disks
    const auto entries_here = at.read<uint64_t>(""), entries = at.read<uint64_t>("");
    const auto size = at.read<uint64_t>(""), begin = at.read<uint64_t>("");
    if (entries_here != entries) damaged("its zip64 end record counts two numbers of entries");
    end = record;
    return {begin, size, entries};
  }

  CentralEntry read_central(ByteReader& in) const {
    constexpr std::string_view kWhat = "the zip directory";
    if (in.read<uint32_t>(kWhat) != kCentralHeader) damaged("an entry of its directory has no signature");
    CentralEntry entry;
    in.take(2 + 2, kWhat);  // versions
    entry.flags = in.read<uint16_t>(kWhat);
    entry.method = in.read<uint16_t>(kWhat);
    in.take(2 + 2 + 4, kWhat);  // time, date, CRC-32
    entry.compressed = in.read<uint32_t>(kWhat);
    entry.size = in.read<uint32_t>(kWhat);
    const auto name_length = in.read<uint16_t>(kWhat), extra_length = in.read<uint16_t>(kWhat);
    const auto comment_length = in.read<uint16_t>(kWhat);
    in.take(2 + 2 + 4, kWhat);  // disk, attributes
    entry.header = in.read<uint32_t>(kWhat);
    entry.name = in.take_text(name_length, kWhat);
    read_extra64(in.take(extra_length, kWhat), entry);
    in.take(comment_length, kWhat);
    return entry;
  }

  void read_extra64(std::span<const std::byte> extra, CentralEntry& entry) const {
    if (entry.size != kIn64 && entry.compressed != kIn64 && entry.header != kIn64) return;
    ByteReader in(path_, extra);
    while (in.remaining() >= 4) {
      const auto id = in.read<uint16_t>(""), length = in.read<uint16_t>("");
      ByteReader field(path_, in.take(length, "the zip directory's extra fields"));
      if (id != kExtra64) continue;
      constexpr std::string_view kWhat = "a zip64 extra field";
      if (entry.size == kIn64) entry.size = field.read<uint64_t>(kWhat);
      if (entry.compressed == kIn64) entry.compressed = field.read<uint64_t>(kWhat);
      if (entry.header == kIn64) entry.header = field.read<uint64_t>(kWhat);
      return;
    }
    damaged("an entry lacks its zip64 sizes");
  }

  void check_stored(const CentralEntry& entry) const {
    if (entry.flags & (kFlagEncrypted | kFlagStrongEncryption | kFlagMasked)) {
      fail("{}: zip entry \"{}\" is encrypted; torch.save does not encrypt: save the model again", path_,
           printable(entry.name));
    }
    if (entry.method != kStored) {
      fail(
          "{}: zip entry \"{}\" is compressed, which torch.save never does; it is not expanded: save the "
          "model again "
          "with torch.save",
          path_, printable(entry.name));
    }
    if (entry.compressed != entry.size) {
      fail("{}: zip entry \"{}\" is stored but has two sizes ({} and {}); the file is damaged or forged",
           path_, printable(entry.name), entry.compressed, entry.size);
    }
  }

  /// Where the entry's bytes begin, behind its local header.
  uint64_t find_data(const CentralEntry& entry, uint64_t limit) const {
    constexpr std::string_view kWhat = "a zip entry";
    const std::string shown = printable(entry.name);
    if (!in_bounds(entry.header, kLocalHeaderBytes, limit)) {
      fail("{}: zip entry \"{}\" begins at byte {}, outside the data; the file is cut short or damaged",
           path_, shown, entry.header);
    }
    ByteReader in(path_, file_.bytes.first(static_cast<size_t>(limit)), entry.header);
    if (in.read<uint32_t>(kWhat) != kLocalHeader) {
      fail("{}: zip entry \"{}\" has no header at byte {}; the file is damaged", path_, shown, entry.header);
    }
    in.take(2, kWhat);  // version
    const auto flags = in.read<uint16_t>(kWhat), method = in.read<uint16_t>(kWhat);
    in.take(2 + 2 + 4, kWhat);  // time, date, CRC-32
    const auto compressed = in.read<uint32_t>(kWhat), size = in.read<uint32_t>(kWhat);
    const auto name_length = in.read<uint16_t>(kWhat), extra_length = in.read<uint16_t>(kWhat);
    const auto own_name = in.take_text(name_length, kWhat);
    in.take(extra_length, kWhat);
    const auto agrees = [&](uint32_t local, uint64_t central) {
      return local == central || local == kIn64 || (local == 0 && (flags & kFlagSizesFollow));
    };
    if (own_name != entry.name || method != entry.method || (flags & kFlagEncrypted) ||
        !agrees(size, entry.size) || !agrees(compressed, entry.compressed)) {
      fail(
          "{}: zip entry \"{}\" says otherwise in its own header than in the directory; the file is damaged "
          "or forged",
          path_, shown);
    }
    if (!in_bounds(in.position(), entry.size, limit)) {
      fail("{}: zip entry \"{}\" of {} bytes runs past the data; the file is cut short or damaged", path_,
           shown, entry.size);
    }
    return in.position();
  }

  const FileBytes& file_;
  std::string path_;
};

}  // namespace

std::vector<ZipEntry> read_zip_directory(const FileBytes& file) { return ZipReader(file).read(); }

}  // namespace rwkvx
