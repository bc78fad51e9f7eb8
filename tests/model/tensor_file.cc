#include "model/tensor_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <regex>

#include "base/error.h"
#include "tensor/convert.h"

namespace rwkvx::test {

TensorFile TensorFile::read(const Path& path) {
  TensorFile file;
  const Catalog catalog = open_catalog(path);
  for (const CatalogTensor& tensor : catalog.tensors()) file.add(tensor.name, tensor.data);
  return file;
}

void TensorFile::write(const Path& path, FileFormat format) const {
  std::vector<TensorToWrite> out;
  for (const Tensor& tensor : tensors) {
    out.push_back({tensor.name, tensor.dtype, tensor.shape, [&tensor] { return tensor.view(); }});
  }
  switch (format) {
    case FileFormat::pth:
      return write_pth(path, out);
    case FileFormat::safetensors:
      return write_safetensors(path, out, metadata);
    case FileFormat::gguf:
      return write_gguf(path, out, metadata);
  }
}

bool TensorFile::has(const std::string& name) const {
  return std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& t) { return t.name == name; });
}

TensorFile::Tensor& TensorFile::at(const std::string& name) {
  for (Tensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  fail("the test's file has no tensor {}", name);
}

void TensorFile::erase(const std::string& name) {
  at(name);
  std::erase_if(tensors, [&](const Tensor& t) { return t.name == name; });
}

void TensorFile::add(const std::string& name, ConstView data) {
  tensors.push_back({name, {data.raw().begin(), data.raw().end()}, data.dtype(), data.shape()});
}

void TensorFile::add(const std::string& name, Shape shape, float value) {
  Buffer buffer(DType::f32, shape);
  std::fill_n(buffer.as<float>(), shape.elements(), value);
  add(name, buffer);
}

void TensorFile::transpose(const std::string& name) {
  Tensor& tensor = at(name);
  Buffer turned(tensor.dtype, {tensor.shape[1], tensor.shape[0]});
  rwkvx::transpose(tensor.view(), turned);
  tensor.shape = turned.view().shape();
  tensor.bytes.assign(turned.view().raw().begin(), turned.view().raw().end());
}

void TensorFile::convert(const std::string& name, DType dtype) {
  Tensor& tensor = at(name);
  Buffer converted(dtype, tensor.shape);
  rwkvx::convert(tensor.view(), converted);
  tensor.dtype = dtype;
  tensor.bytes.assign(converted.view().raw().begin(), converted.view().raw().end());
}

namespace {

struct SmallSizes {
  int64_t C, V, F;
  std::array<int64_t, 4> ranks;  // w, a, v, g
};

TensorFile model_of(const SmallSizes& sizes, int64_t layers, int64_t sparse_blocks, DType dtype) {
  const auto& [C, V, F, ranks] = sizes;
  // Sums of more terms stay as large.
  const double narrower = std::sqrt(64.0 / static_cast<double>(C));
  TensorFile file;
  std::mt19937_64 random(static_cast<uint64_t>(layers * 10 + sparse_blocks));
  const auto add = [&](const std::string& name, Shape shape, float middle, double spread) {
    Buffer buffer(DType::f32, shape);
    for (int64_t i = 0; i < shape.elements(); ++i) {
      const double uniform = static_cast<double>(random() >> 11) * 0x1p-52 - 1;
      buffer.as<float>()[i] = middle + static_cast<float>(uniform * spread);
    }
    Buffer stored(dtype, shape);
    rwkvx::convert(buffer, stored);
    file.add(name, stored);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {C}, 1, 0.1);
    add(name + ".bias", {C}, 0, 0.1);
  };
  const auto channel_mix = [&](const std::string& p) {
    add(p + "x_k", {1, 1, C}, 0.5f, 0.5);
    add(p + "key.weight", {F, C}, 0, 0.2 * narrower);
    add(p + "value.weight", {C, F}, 0, 0.1 * narrower);
  };
  const auto projections = [&](const std::string& p) {
    for (const char* name : {"receptance", "key", "value", "output"})
      add(p + name + ".weight", {C, C}, 0, 0.2 * narrower);
  };
  const std::string prefix = sparse_blocks > 0 ? "rwkv." : "";
  if (sparse_blocks > 0)
    file.metadata = {{"rwkvx.chunk_size", std::string("2048")}, {"rwkvx.top_k", std::string("3")}};
  add(prefix + "emb.weight", {V, C}, 0, 1);
  for (int64_t i = 0; i < layers; ++i) {
    const std::string b = fmt::format("{}blocks.{}.", prefix, i), a = b + "att.";
    if (i == 0) norm(b + "ln0");
    norm(b + "ln1");
    norm(b + "ln2");
    for (const char* x : {"x_r", "x_w", "x_k", "x_v", "x_a", "x_g"}) add(a + x, {1, 1, C}, 0.5f, 0.5);
    const auto low_rank = [&](const std::string& letter, int64_t rank, bool offset) {
      add(a + letter + "1", {C, rank}, 0, 0.2 * narrower);
      add(a + letter + "2", {rank, C}, 0, 0.4);
      if (offset) add(a + letter + "0", {1, 1, C}, 0, 0.5);
    };
    low_rank("w", ranks[0], true);
    low_rank("a", ranks[1], true);
    if (i > 0) low_rank("v", ranks[2], true);
    low_rank("g", ranks[3], false);
    add(a + "k_k", {1, 1, C}, 0.85f, 0.1);
    add(a + "k_a", {1, 1, C}, 1, 0.1);
    add(a + "r_k", {C / 64, 64}, 0, 0.1);
    projections(a);
    norm(a + "ln_x");
    channel_mix(b + "ffn.");
  }
  for (int64_t j = 0; j < sparse_blocks; ++j) {
    const std::string b = fmt::format("moba.{}.", j);
    norm(b + "ln1");
    norm(b + "ln2");
    projections(b + "att.");
    channel_mix(b + "ffn.");
  }
  norm(prefix + "ln_out");
  add(prefix + "head.weight", {V, C}, 0, 0.3 * narrower);
  return file;
}

}  // namespace

TensorFile small_model(int64_t layers, int64_t sparse_blocks, DType dtype) {
  return model_of({64, 256, 96, {4, 6, 3, 10}}, layers, sparse_blocks, dtype);
}

TensorFile wide_model(int64_t channels, int64_t layers, int64_t sparse_blocks) {
  return model_of({channels, 256, 4 * channels, {32, 64, 32, 96}}, layers, sparse_blocks, DType::f32);
}

TensorFile as_fla(const TensorFile& rwkv, bool fused) {
  const std::vector<std::pair<std::regex, std::string>> names{
      {std::regex("emb\\.weight"), "model.embeddings.weight"},
      {std::regex("head\\.weight"), "lm_head.weight"},
      {std::regex("ln_out\\.(.*)"), "model.norm.$1"},
      {std::regex("blocks\\.(\\d+)\\.ln0\\.(.*)"), "model.layers.$1.pre_norm.$2"},
      {std::regex("blocks\\.(\\d+)\\.ln1\\.(.*)"), "model.layers.$1.attn_norm.$2"},
      {std::regex("blocks\\.(\\d+)\\.ln2\\.(.*)"), "model.layers.$1.ffn_norm.$2"},
      {std::regex("blocks\\.(\\d+)\\.att\\.ln_x\\.(.*)"), "model.layers.$1.attn.g_norm.$2"},
      {std::regex("blocks\\.(\\d+)\\.att\\.receptance\\.weight"), "model.layers.$1.attn.r_proj.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.key\\.weight"), "model.layers.$1.attn.k_proj.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.value\\.weight"), "model.layers.$1.attn.v_proj.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.output\\.weight"), "model.layers.$1.attn.o_proj.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.([wavg])1"), "model.layers.$1.attn.$2_lora.lora.0.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.([wavg])2"), "model.layers.$1.attn.$2_lora.lora.2.weight"},
      {std::regex("blocks\\.(\\d+)\\.att\\.([wav])0"), "model.layers.$1.attn.$2_lora.lora.2.bias"},
      {std::regex("blocks\\.(\\d+)\\.att\\.(x_[rwkvag]|k_k|k_a|r_k)"), "model.layers.$1.attn.$2"},
      {std::regex("blocks\\.(\\d+)\\.ffn\\.(.*)"), "model.layers.$1.ffn.$2"},
  };
  const std::regex low_rank(".*lora\\.[02]\\.weight"), vector("(.*\\.bias|.*\\.k_[ka]|.*ffn\\.x_k)"),
      mix("(.*\\.attn\\.)x_[rwkvag]");
  TensorFile out;
  for (const TensorFile::Tensor& tensor : rwkv.tensors) {
    std::string name;
    for (const auto& [from, to] : names) {
      if (std::regex_match(tensor.name, from)) name = std::regex_replace(tensor.name, from, to);
    }
    if (name.empty()) fail("flash-linear-attention has no name for {}", tensor.name);
    std::smatch match;
    if (fused && std::regex_match(name, match, mix)) {
      const std::string all = match[1].str() + "x_x";
      const int64_t width = tensor.shape.elements();
      if (!out.has(all)) out.tensors.push_back({all, {}, tensor.dtype, {0, width}});
      TensorFile::Tensor& rows = out.at(all);  // r w k v a g: the order of the public files too
      rows.bytes.insert(rows.bytes.end(), tensor.bytes.begin(), tensor.bytes.end());
      rows.shape = {rows.shape[0] + 1, width};
      continue;
    }
    out.tensors.push_back(tensor);
    out.tensors.back().name = name;
    if (std::regex_match(name, low_rank)) out.transpose(name);
    if (std::regex_match(name, vector)) out.at(name).shape = {tensor.shape.elements()};
  }
  return out;
}

}  // namespace rwkvx::test
