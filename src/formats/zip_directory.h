#pragma once

#include <string>
#include <vector>

#include "formats/file_bytes.h"

namespace rwkvx {

/// A file in a zip archive, stored as it is: bytes [begin, begin + size) of the archive.
struct ZipEntry {
  std::string name;
  uint64_t begin = 0, size = 0;
};

/// The entries of a zip archive as torch.save writes them (APPNOTE.TXT of PKWARE, with zip64), in the order
/// of the central directory. Errors: a damaged archive; compressed or encrypted entries (so nothing can
/// expand); two entries of one name or that share bytes; several disks.
std::vector<ZipEntry> read_zip_directory(const FileBytes& file);

}  // namespace rwkvx
