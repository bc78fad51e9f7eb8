#include <charconv>

#include "base/error.h"
#include "model/dialects/dialects.h"
#include "tensor/buffer.h"
#include "tensor/convert.h"

namespace rwkvx::dialects {

std::optional<Indexed> split_index(std::string_view name, std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  int64_t index = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), index);
  if (error != std::errc() || index < 0 || end == name.data() + name.size() || *end != '.')
    return std::nullopt;
  return Indexed{index, std::string(end + 1, name.data() + name.size())};
}

void add_transposed(Catalog& to, const std::string& name, ConstView from) {
  if (from.shape().rank() != 2 || is_quantised(from.dtype())) {
    to.add(name, from);  // misshaped: reported when the weights are loaded
    return;
  }
  auto buffer = std::make_shared<Buffer>(from.dtype(), Shape{from.dim(1), from.dim(0)});
  transpose(from, buffer->view());
  to.add(name, buffer->view());
  to.keep(buffer);
}

bool add_fused_mix(Catalog& to, int64_t block, ConstView x) {
  if (x.shape().rank() < 2 || x.dim(0) != 6 || !is_float(x.dtype())) return false;
  for (size_t i = 0; i < kMixNames.size(); ++i) {
    to.add(fmt::format("blocks.{}.att.{}", block, kMixNames[i]),
           x.rows(static_cast<int64_t>(i), 1).reshaped({x.elements() / 6}));
  }
  return true;
}

bool is_unused(std::string_view canonical) {
  return canonical == "blocks.0.att.v0" || canonical == "blocks.0.att.v1" || canonical == "blocks.0.att.v2";
}

Catalog canonical_rwkv(Catalog file) {
  Catalog out = file.without_tensors();
  const bool prefixed = file.find("rwkv.emb.weight") != nullptr;
  constexpr std::string_view kLowRank[] = {"w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"};
  for (const CatalogTensor& tensor : file.tensors()) {
    std::string name = tensor.name;
    if (prefixed && name.starts_with("rwkv.")) name.erase(0, 5);
    if (is_unused(name)) continue;
    bool low_rank = false;
    if (const auto block = split_index(name, "blocks.")) {
      for (const std::string_view part : kLowRank)
        low_rank = low_rank || block->tail == fmt::format("att.{}", part);
    }
    if (low_rank) {
      add_transposed(out, name, tensor.data);
    } else {
      out.add(name, tensor.data);
    }
  }
  return out;
}

}  // namespace rwkvx::dialects
