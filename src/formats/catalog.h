#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/file.h"
#include "base/progress.h"
#include "tensor/view.h"

namespace rwkvx {

/// One tensor of a file. `data` points into memory that the catalog keeps alive (usually the mapped file);
/// its shape is row-major with the last dimension contiguous, whatever order the file writes dimensions in.
struct CatalogTensor {
  std::string name;
  ConstView data;
};

/// Metadata of a file: GGUF key-values, safetensors __metadata__ (strings only). Arrays hold one type.
using MetadataValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<int64_t>,
                                   std::vector<double>, std::vector<std::string>>;

enum class FileFormat { pth, safetensors, gguf };
std::string_view name(FileFormat format);  ///< ".pth", ".safetensors", "GGUF"

/// The tensors of a file, all bounds checked, in file order, names unique.
class Catalog {
 public:
  Path path;
  FileFormat format = FileFormat::safetensors;
  std::unordered_map<std::string, MetadataValue> metadata;

  const std::vector<CatalogTensor>& tensors() const { return tensors_; }
  /// Null when there is none of that name.
  const CatalogTensor* find(std::string_view name) const;
  /// Errors: a name that is there already.
  void add(std::string name, ConstView data);
  /// The same file, metadata and memory, with an empty list of tensors: where views are renamed or replaced.
  Catalog without_tensors() const {
    Catalog out;
    out.path = path;
    out.format = format;
    out.metadata = metadata;
    out.memory_ = memory_;
    return out;
  }
  /// Memory that the views point into.
  void keep(std::shared_ptr<const void> memory) { memory_.push_back(std::move(memory)); }

  /// Metadata of a type, null when missing. Errors: present with another type (named with the file).
  const std::string* text(const std::string& key) const;
  const uint64_t* number(const std::string& key) const;

 private:
  struct StringHash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };
  std::vector<CatalogTensor> tensors_;
  std::unordered_map<std::string, size_t, StringHash, std::equal_to<>> index_;
  std::vector<std::shared_ptr<const void>> memory_;
};

/// Opens a file of any of the three formats, told apart by content, not by name.
/// Errors name the file, what is wrong with it and what to do. Nothing in a file is ever executed.
Catalog open_catalog(const Path& path);

Catalog read_pth(const Path& path);
Catalog read_safetensors(const Path& path);
Catalog read_gguf(const Path& path);

/// Writers stream tensor by tensor, so that memory stays small: `data` is called once for each tensor, in
/// order, and its result is used before the next call. Progress is in bytes. Written beside and renamed.
struct TensorToWrite {
  std::string name;
  DType dtype;
  Shape shape;
  std::function<ConstView()> data;
};
using Metadata = std::vector<std::pair<std::string, MetadataValue>>;

/// `metadata` values that are not strings are written as text.
void write_safetensors(const Path& path, std::span<const TensorToWrite> tensors, const Metadata& metadata,
                       const Progress& progress = {});
/// What torch.save writes for a dict of tensors; torch.load(weights_only=True) reads it. No metadata.
void write_pth(const Path& path, std::span<const TensorToWrite> tensors, const Progress& progress = {});
/// GGUF v3. int64_t is written as i32 when it fits and else i64, uint64_t as u32 / u64, double as f32,
/// vector<int64_t> as an i32 array.
void write_gguf(const Path& path, std::span<const TensorToWrite> tensors, const Metadata& metadata,
                const Progress& progress = {});

}  // namespace rwkvx
