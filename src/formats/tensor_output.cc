#include "formats/tensor_output.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "base/assert.h"
#include "base/error.h"

namespace rwkvx {
namespace {

bool is_utf8(const std::string& text) {
  try {
    static_cast<void>(nlohmann::json(text).dump());
    return true;
  } catch (const nlohmann::json::exception&) {
    return false;
  }
}

}  // namespace

std::vector<uint64_t> checked_sizes(const Path& path, std::span<const TensorToWrite> tensors) {
  std::vector<uint64_t> sizes;
  std::unordered_set<std::string_view> names;
  if (tensors.empty()) fail("cannot write {}: there are no tensors", path.string());
  for (const TensorToWrite& t : tensors) {
    if (!names.insert(t.name).second) {
      fail("cannot write {}: tensor \"{}\" is there twice", path.string(), printable(t.name));
    }
    if (t.name.empty() || !is_utf8(t.name)) {
      fail("cannot write {}: a tensor is named \"{}\"; names must be UTF-8 and not empty", path.string(),
           printable(t.name));
    }
    const auto elements = checked_elements(t.shape.dims());
    const auto bytes = elements ? checked_bytes(t.dtype, *elements) : std::nullopt;
    if (!bytes) {
      fail("cannot write {}: tensor \"{}\" cannot have the shape {} in type {}", path.string(),
           printable(t.name), t.shape.str(), name(t.dtype));
    }
    sizes.push_back(*bytes);
  }
  return sizes;
}

ConstView TensorOutput::data_of(const TensorToWrite& tensor) {
  const ConstView data = tensor.data();
  RWKVX_ASSERT(data.dtype() == tensor.dtype && data.shape() == tensor.shape);
  return data;
}

void TensorOutput::write_data(ConstView data) {
  constexpr size_t kPiece = size_t{8} << 20;
  for (auto rest = data.raw(); !rest.empty();) {
    const auto piece = rest.first(std::min(rest.size(), kPiece));
    file.write(piece);
    rest = rest.subspan(piece.size());
    done_ += piece.size();
    if (progress_) progress_(done_, total_);
  }
}

void TensorOutput::write_zeros(uint64_t count) { file.write(std::string(static_cast<size_t>(count), '\0')); }

}  // namespace rwkvx
