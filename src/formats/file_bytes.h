#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "formats/catalog.h"

namespace rwkvx {

/// The bytes of an untrusted file, the path that messages call it by, and what keeps the bytes alive.
struct FileBytes {
  Path path;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};

FileBytes map_file(const Path& path);

/// What the functions of catalog.h do once the file is mapped; tests and fuzzers feed bytes here.
Catalog parse_catalog(const FileBytes& file);
Catalog parse_pth(const FileBytes& file);
Catalog parse_safetensors(const FileBytes& file);
Catalog parse_gguf(const FileBytes& file);

/// What typed access to an element or block of the type needs, in bytes.
size_t element_alignment(DType dtype);

/// Adds a tensor whose elements are `data` (its length fits the shape). A view of `data` where it is aligned
/// for the type, else a copy that the catalog keeps.
void add_tensor(Catalog& catalog, std::string tensor, DType dtype, const Shape& shape,
                std::span<const std::byte> data);

/// Bytes [begin, end) of a file and what they hold, as a message says it.
struct Extent {
  uint64_t begin, end;
  std::string_view name;
};
/// Errors: two that share bytes. Empty ones are ignored.
void check_disjoint(const Path& path, std::string_view kind, std::vector<Extent> extents);

}  // namespace rwkvx
