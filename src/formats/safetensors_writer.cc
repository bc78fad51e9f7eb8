#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "formats/safetensors_types.h"
#include "formats/tensor_output.h"

namespace rwkvx {
namespace {

using Json = nlohmann::ordered_json;

std::string as_text(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::string>) {
          return v;
        } else {
          return Json(v).dump();
        }
      },
      value);
}

/// Larger element types first, otherwise as given: so that every tensor is aligned for its type without gaps,
/// which Hugging Face's reader does not allow.
std::vector<size_t> aligned_order(std::span<const TensorToWrite> tensors) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return info(tensors[a].dtype).block_bytes > info(tensors[b].dtype).block_bytes;
  });
  return order;
}

}  // namespace

void write_safetensors(const Path& path, std::span<const TensorToWrite> tensors, const Metadata& metadata,
                       const Progress& progress) {
  const auto sizes = checked_sizes(path, tensors);
  const auto order = aligned_order(tensors);
  std::string text;
  uint64_t offset = 0;
  try {
    Json header = Json::object();
    for (const auto& [key, value] : metadata) {
      Json& entries = header["__metadata__"];
      if (entries.contains(key))
        fail("cannot write {}: metadata \"{}\" is there twice", path.string(), printable(key));
      entries[key] = as_text(value);
    }
    Json entries;
    for (const size_t i : order) {
      const TensorToWrite& t = tensors[i];
      const auto dtype = safetensors_name(t.dtype);
      if (!dtype) {
        fail("cannot write {}: safetensors has no type {} (tensor \"{}\"); choose f32, f16 or bf16",
             path.string(), name(t.dtype), printable(t.name));
      }
      if (t.name == "__metadata__")
        fail("cannot write {}: no tensor may be named __metadata__", path.string());
      entries = {{"dtype", *dtype}, {"shape", t.shape.dims()}, {"data_offsets", {offset, offset + sizes[i]}}};
      // ordered_json looks for the key in all entries before it appends one; names were checked already.
      header.get_ref<Json::object_t&>().emplace_back(t.name, std::move(entries));
      offset += sizes[i];
    }
    text = header.dump();
  } catch (const nlohmann::json::exception&) {
    fail(
        "cannot write {}: a tensor's name or a text of its metadata is not valid UTF-8, which safetensors "
        "asks for",
        path.string());
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kSafetensorsHeaderLimit) {
    fail("cannot write {}: its header of {} bytes is longer than safetensors allows", path.string(),
         text.size());
  }

  TensorOutput out(path, offset, progress);
  out.write_number(static_cast<uint64_t>(text.size()));
  out.file.write(text);
  for (const size_t i : order) out.write_data(TensorOutput::data_of(tensors[i]));
  out.file.commit();
}

}  // namespace rwkvx
