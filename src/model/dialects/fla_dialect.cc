#include <utility>

#include "model/dialects/dialects.h"

namespace rwkvx::dialects {
namespace {

struct Rename {
  std::string_view fla, canonical;
};

constexpr Rename kTop[] = {
    {"model.embeddings.weight", "emb.weight"},
    {"model.norm.weight", "ln_out.weight"},
    {"model.norm.bias", "ln_out.bias"},
    {"lm_head.weight", "head.weight"},
};

// Low-rank matrices are nn.Linear weights there, [out, in] as ours are.
constexpr Rename kBlock[] = {
    {"pre_norm.", "ln0."},
    {"attn_norm.", "ln1."},
    {"ffn_norm.", "ln2."},
    {"attn.g_norm.", "att.ln_x."},
    {"attn.r_proj.", "att.receptance."},
    {"attn.k_proj.", "att.key."},
    {"attn.v_proj.", "att.value."},
    {"attn.o_proj.", "att.output."},
    {"attn.w_lora.lora.0.weight", "att.w1"},
    {"attn.w_lora.lora.2.weight", "att.w2"},
    {"attn.w_lora.lora.2.bias", "att.w0"},
    {"attn.a_lora.lora.0.weight", "att.a1"},
    {"attn.a_lora.lora.2.weight", "att.a2"},
    {"attn.a_lora.lora.2.bias", "att.a0"},
    {"attn.v_lora.lora.0.weight", "att.v1"},
    {"attn.v_lora.lora.2.weight", "att.v2"},
    {"attn.v_lora.lora.2.bias", "att.v0"},
    {"attn.g_lora.lora.0.weight", "att.g1"},
    {"attn.g_lora.lora.2.weight", "att.g2"},
    {"attn.", "att."},  // x_r … x_g, k_k, k_a, r_k
    {"ffn.", "ffn."},
};

std::string renamed(const std::string& name) {
  for (const Rename& r : kTop) {
    if (name == r.fla) return std::string(r.canonical);
  }
  if (const auto block = split_index(name, "model.layers.")) {
    for (const Rename& r : kBlock) {
      if (block->tail.starts_with(r.fla)) {
        return fmt::format("blocks.{}.{}{}", block->index, r.canonical, block->tail.substr(r.fla.size()));
      }
    }
  }
  return name;
}

}  // namespace

std::string fla_name(const std::string& canonical) {
  for (const Rename& r : kTop) {
    if (canonical == r.canonical) return std::string(r.fla);
  }
  if (const auto block = split_index(canonical, "blocks.")) {
    for (const Rename& r : kBlock) {
      if (block->tail.starts_with(r.canonical)) {
        return fmt::format("model.layers.{}.{}{}", block->index, r.fla,
                           block->tail.substr(r.canonical.size()));
      }
    }
  }
  return canonical;
}

// Names: flash-linear-attention, fla/models/rwkv7 and utils/convert_from_rwkv7.py.
Catalog canonical_fla(Catalog file) {
  Catalog out = file.without_tensors();
  for (const CatalogTensor& tensor : file.tensors()) {
    const auto block = split_index(tensor.name, "model.layers.");
    if (block && block->tail == "attn.x_x" && add_fused_mix(out, block->index, tensor.data)) continue;
    const std::string name = renamed(tensor.name);
    if (!is_unused(name)) out.add(name, tensor.data);
  }
  return out;
}

}  // namespace rwkvx::dialects
