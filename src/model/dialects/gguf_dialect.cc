#include <utility>

#include "model/dialects/dialects.h"

namespace rwkvx::dialects {
namespace {

struct Rename {
  std::string_view gguf, canonical;
};

constexpr Rename kTop[] = {
    {"token_embd.weight", "emb.weight"},           {"token_embd_norm.weight", "blocks.0.ln0.weight"},
    {"token_embd_norm.bias", "blocks.0.ln0.bias"}, {"output_norm.weight", "ln_out.weight"},
    {"output_norm.bias", "ln_out.bias"},           {"output.weight", "head.weight"},
};

// Low-rank matrices are stored [out, in] there as ours are. Source: llama.cpp's rwkv7 architecture; the
// `sparse.` names are our own.
constexpr Rename kBlock[] = {
    {"attn_norm.weight", "ln1.weight"},
    {"attn_norm.bias", "ln1.bias"},
    {"attn_norm_2.weight", "ln2.weight"},
    {"attn_norm_2.bias", "ln2.bias"},
    {"time_mix_w0.weight", "att.w0"},
    {"time_mix_w1.weight", "att.w1"},
    {"time_mix_w2.weight", "att.w2"},
    {"time_mix_a0.weight", "att.a0"},
    {"time_mix_a1.weight", "att.a1"},
    {"time_mix_a2.weight", "att.a2"},
    {"time_mix_v0.weight", "att.v0"},
    {"time_mix_v1.weight", "att.v1"},
    {"time_mix_v2.weight", "att.v2"},
    {"time_mix_g1.weight", "att.g1"},
    {"time_mix_g2.weight", "att.g2"},
    {"time_mix_k_k.weight", "att.k_k"},
    {"time_mix_k_a.weight", "att.k_a"},
    {"time_mix_r_k.weight", "att.r_k"},
    {"time_mix_receptance.weight", "att.receptance.weight"},
    {"time_mix_key.weight", "att.key.weight"},
    {"time_mix_value.weight", "att.value.weight"},
    {"time_mix_output.weight", "att.output.weight"},
    {"time_mix_ln.weight", "att.ln_x.weight"},
    {"time_mix_ln.bias", "att.ln_x.bias"},
    {"channel_mix_lerp_k.weight", "ffn.x_k"},
    {"channel_mix_key.weight", "ffn.key.weight"},
    {"channel_mix_value.weight", "ffn.value.weight"},
};

constexpr Rename kSparse[] = {
    {"attn_norm.weight", "ln1.weight"},
    {"attn_norm.bias", "ln1.bias"},
    {"attn_norm_2.weight", "ln2.weight"},
    {"attn_norm_2.bias", "ln2.bias"},
    {"attn_q.weight", "att.receptance.weight"},
    {"attn_k.weight", "att.key.weight"},
    {"attn_v.weight", "att.value.weight"},
    {"attn_output.weight", "att.output.weight"},
    {"channel_mix_lerp_k.weight", "ffn.x_k"},
    {"channel_mix_key.weight", "ffn.key.weight"},
    {"channel_mix_value.weight", "ffn.value.weight"},
};

constexpr std::string_view kFusedMix = "time_mix_lerp_fused.weight";

template <size_t n>
std::optional<std::string_view> find(const Rename (&table)[n], std::string_view name, bool to_gguf) {
  for (const Rename& r : table) {
    if ((to_gguf ? r.canonical : r.gguf) == name) return to_gguf ? r.gguf : r.canonical;
  }
  return std::nullopt;
}

std::string renamed(const std::string& name) {
  if (const auto top = find(kTop, name, false)) return std::string(*top);
  if (const auto block = split_index(name, "blk.")) {
    if (const auto tail = find(kBlock, block->tail, false))
      return fmt::format("blocks.{}.{}", block->index, *tail);
  }
  if (const auto block = split_index(name, "sparse.")) {
    if (const auto tail = find(kSparse, block->tail, false))
      return fmt::format("moba.{}.{}", block->index, *tail);
  }
  return name;
}

}  // namespace

std::string gguf_name(const std::string& canonical) {
  if (const auto top = find(kTop, canonical, true)) return std::string(*top);
  if (const auto block = split_index(canonical, "blocks.")) {
    if (block->tail.starts_with("att.x_")) return fmt::format("blk.{}.{}", block->index, kFusedMix);
    if (const auto tail = find(kBlock, block->tail, true))
      return fmt::format("blk.{}.{}", block->index, *tail);
  }
  if (const auto block = split_index(canonical, "moba.")) {
    if (const auto tail = find(kSparse, block->tail, true))
      return fmt::format("sparse.{}.{}", block->index, *tail);
  }
  return canonical;
}

Catalog canonical_gguf(Catalog file) {
  Catalog out = file.without_tensors();
  for (const CatalogTensor& tensor : file.tensors()) {
    const auto block = split_index(tensor.name, "blk.");
    if (block && block->tail == kFusedMix && add_fused_mix(out, block->index, tensor.data)) continue;
    const std::string name = renamed(tensor.name);
    if (!is_unused(name)) out.add(name, tensor.data);
  }
  return out;
}

}  // namespace rwkvx::dialects
