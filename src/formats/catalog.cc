#include "formats/catalog.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstring>

#include "base/error.h"
#include "formats/file_bytes.h"
#include "tensor/buffer.h"

namespace rwkvx {
namespace {

std::string_view type_name(const MetadataValue& value) {
  constexpr std::array<std::string_view, std::variant_size_v<MetadataValue>> kNames = {
      "a truth value",         "a number",        "a number", "a fraction", "text", "an array of numbers",
      "an array of fractions", "an array of text"};
  return kNames[value.index()];
}

bool starts_with_ignoring_case(std::string_view text, std::string_view lower) {
  return text.size() >= lower.size() &&
         std::equal(lower.begin(), lower.end(), text.begin(), [](char a, char b) {
           return a == static_cast<char>(std::tolower(static_cast<unsigned char>(b)));
         });
}

/// A safetensors file starts with the length of its JSON header in 8 bytes, then the header.
bool looks_like_safetensors(std::string_view text) {
  if (text.size() < 9 || text[8] != '{') return false;
  uint64_t length;
  std::memcpy(&length, text.data(), sizeof length);
  return length >= 2 && length <= (uint64_t{1} << 40);
}

/// Files that people pass by mistake. Never returns.
[[noreturn]] void fail_unknown(const FileBytes& file, std::string_view text) {
  const std::string path = file.path.string();
  std::string_view trimmed = text.substr(0, 512);
  while (!trimmed.empty() && std::isspace(static_cast<unsigned char>(trimmed.front())))
    trimmed.remove_prefix(1);
  if (text.starts_with("version https://git-lfs")) {
    fail("{} is a git-lfs pointer, not the model itself: run `git lfs pull` or download the file", path);
  }
  if (starts_with_ignoring_case(trimmed, "<!doctype") || starts_with_ignoring_case(trimmed, "<html") ||
      starts_with_ignoring_case(trimmed, "<?xml")) {
    fail("{} is a web page, not a model: the download went wrong; download the file itself", path);
  }
  if (text.size() >= 2 && text[0] == '\x80' && text[1] >= 1 && text[1] <= 5) {
    fail(
        "{} is a bare pickle, as torch.save wrote before PyTorch 1.6: load it in Python and save it again "
        "with "
        "torch.save or safetensors",
        path);
  }
  const std::string_view magic = text.substr(0, 4);
  if (magic == "lmgg" || magic == "fmgg" || magic == "tjgg" || magic == "algg") {
    fail("{} is a ggml file from before GGUF (as rwkv.cpp writes): convert the original .pth instead", path);
  }
  if (magic == "FUGG") fail("{} is a big-endian GGUF file; only little-endian ones can be read", path);
  if (text.starts_with("\x1f\x8b") || text.starts_with("\x28\xb5\x2f\xfd") ||
      text.starts_with("\xfd"
                       "7zXZ") ||
      text.starts_with("7z\xbc\xaf") || text.starts_with("Rar!")) {
    fail("{} is a compressed archive: unpack it first", path);
  }
  if (trimmed.starts_with("{"))
    fail("{} is a JSON file, not a model: give the .safetensors file itself", path);
  fail("{} is not a model file: it is neither a .pth (zip), nor safetensors, nor GGUF; it starts with \"{}\"",
       path, printable(text, 16));
}

}  // namespace

std::string_view name(FileFormat format) {
  switch (format) {
    case FileFormat::pth:
      return ".pth";
    case FileFormat::safetensors:
      return "safetensors";
    case FileFormat::gguf:
      return "GGUF";
  }
  return "";
}

const CatalogTensor* Catalog::find(std::string_view tensor) const {
  const auto it = index_.find(tensor);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

void Catalog::add(std::string tensor, ConstView data) {
  if (!index_.emplace(tensor, tensors_.size()).second) {
    fail("{}: tensor \"{}\" is there twice; the file is damaged or forged", path.string(), printable(tensor));
  }
  tensors_.push_back({std::move(tensor), data});
}

const std::string* Catalog::text(const std::string& key) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return nullptr;
  if (const auto* value = std::get_if<std::string>(&it->second)) return value;
  fail("{}: metadata \"{}\" is {} instead of text", path.string(), printable(key), type_name(it->second));
}

const uint64_t* Catalog::number(const std::string& key) const {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return nullptr;
  if (const auto* value = std::get_if<uint64_t>(&it->second)) return value;
  if (const auto* value = std::get_if<int64_t>(&it->second)) {
    // The signed and the unsigned type of one width may alias, and a value that is not negative is the same
    // in both.
    if (*value >= 0) return reinterpret_cast<const uint64_t*>(value);
    fail("{}: metadata \"{}\" is negative ({})", path.string(), printable(key), *value);
  }
  fail("{}: metadata \"{}\" is {} instead of a whole number", path.string(), printable(key),
       type_name(it->second));
}

FileBytes map_file(const Path& path) {
  auto mapped = MappedFile::open(path);
  const auto bytes = mapped->bytes();
  return {path, bytes, std::move(mapped)};
}

Catalog parse_catalog(const FileBytes& file) {
  const std::string_view text(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
  if (text.empty()) fail("{} is empty; copy or download it again", file.path.string());
  if (text.starts_with("PK\x03\x04") || text.starts_with("PK\x05\x06")) return parse_pth(file);
  if (text.starts_with("GGUF")) return parse_gguf(file);
  if (looks_like_safetensors(text)) return parse_safetensors(file);
  fail_unknown(file, text);
}

Catalog open_catalog(const Path& path) { return parse_catalog(map_file(path)); }
Catalog read_pth(const Path& path) { return parse_pth(map_file(path)); }
Catalog read_safetensors(const Path& path) { return parse_safetensors(map_file(path)); }
Catalog read_gguf(const Path& path) { return parse_gguf(map_file(path)); }

size_t element_alignment(DType dtype) {
  // The blocks of quantised types start with, or hold, float16 scales.
  return is_quantised(dtype) ? 2 : info(dtype).block_bytes;
}

void add_tensor(Catalog& catalog, std::string tensor, DType dtype, const Shape& shape,
                std::span<const std::byte> data) {
  if (reinterpret_cast<uintptr_t>(data.data()) % element_alignment(dtype) == 0) {
    catalog.add(std::move(tensor), ConstView(data.data(), dtype, shape));
    return;
  }
  auto copy = std::make_shared<Buffer>(dtype, shape);
  if (!data.empty()) std::memcpy(copy->view().data(), data.data(), data.size());
  catalog.add(std::move(tensor), std::as_const(*copy).view());
  catalog.keep(std::move(copy));
}

void check_disjoint(const Path& path, std::string_view kind, std::vector<Extent> extents) {
  std::erase_if(extents, [](const Extent& e) { return e.begin == e.end; });
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i) {
    const Extent &before = extents[i - 1], &after = extents[i];
    if (after.begin < before.end) {
      fail("{}: {} \"{}\" (bytes {} to {}) and \"{}\" (from byte {}) overlap; the file is damaged or forged",
           path.string(), kind, printable(before.name), before.begin, before.end, printable(after.name),
           after.begin);
    }
  }
}

}  // namespace rwkvx
