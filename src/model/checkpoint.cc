#include "model/checkpoint.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "model/dialects/dialects.h"

namespace rwkvx {
namespace {

int64_t highest_index(const Catalog& catalog, std::string_view prefix) {
  int64_t highest = -1;
  for (const CatalogTensor& tensor : catalog.tensors()) {
    if (const auto block = dialects::split_index(tensor.name, prefix))
      highest = std::max(highest, block->index);
  }
  return highest;
}

/// What a file that is no RWKV-7 looks like, from its tensor names; empty when it does look like one.
std::string looks_like(const Catalog& catalog) {
  for (const CatalogTensor& tensor : catalog.tensors()) {
    if (tensor.name.find("time_maa_") != std::string::npos) return "an RWKV-6 model";
    if (tensor.name.find("time_mix_k") != std::string::npos ||
        tensor.name.find("time_decay") != std::string::npos) {
      return "an RWKV-4 or RWKV-5 model";
    }
    if (tensor.name.find("self_attn") != std::string::npos) return "a transformer";
  }
  if (catalog.tensors().empty()) return "a file without tensors";
  if (catalog.find("emb.weight") != nullptr && catalog.find("blocks.0.ln1.weight") != nullptr) return "";
  return fmt::format("a file whose first tensor is '{}'", printable(catalog.tensors().front().name));
}

const CatalogTensor& needed(const Checkpoint& checkpoint, const std::string& name, int rank) {
  const Catalog& catalog = checkpoint.catalog;
  const CatalogTensor* tensor = catalog.find(name);
  const std::string shown = checkpoint.file_name_of(name);
  if (tensor == nullptr) {
    const std::string other = looks_like(catalog);
    if (other.empty()) fail("{}: tensor {} is missing", catalog.path.string(), shown);
    fail("{}: no tensor {}: this looks like {}, not like RWKV-7 or RWKV-X", catalog.path.string(), shown,
         other);
  }
  if (tensor->data.shape().rank() != rank) {
    fail("{}: tensor {} has shape {}; {} dimensions are needed", catalog.path.string(), shown,
         tensor->data.shape().str(), rank);
  }
  return *tensor;
}

std::optional<int64_t> recorded(const Catalog& catalog, std::string_view key) {
  const auto found = catalog.metadata.find(std::string(key));
  if (found == catalog.metadata.end()) return std::nullopt;
  if (const auto* n = std::get_if<uint64_t>(&found->second)) return static_cast<int64_t>(*n);
  if (const auto* n = std::get_if<int64_t>(&found->second)) return *n;
  if (const auto* text = std::get_if<std::string>(&found->second)) {
    int64_t n = 0;
    const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), n);
    if (error == std::errc() && end == text->data() + text->size()) return n;
  }
  fail(
      "{}: the metadata value {} is not a whole number; pass --chunk-size and --chunk-top-k and convert the "
      "file anew",
      catalog.path.string(), key);
}

void place_as_recorded(const Catalog& catalog, ModelConfig& config) {
  const auto found = catalog.metadata.find(kSparseAfterKey);
  if (found == catalog.metadata.end()) return;
  const auto* text = std::get_if<std::string>(&found->second);
  if (text == nullptr) fail("{}: the metadata value {} is not text", catalog.path.string(), kSparseAfterKey);
  try {
    place_sparse_blocks(config, *text);
  } catch (const Error& error) {
    fail("{}: the metadata value {}: {}", catalog.path.string(), kSparseAfterKey, error.what());
  }
}

void check_chunk_settings(const ModelConfig& config, const Path& path) {
  if (config.chunk_size < 1 || config.chunk_size > (int64_t{1} << 24)) {
    fail("{}: the chunk size must be from 1 to 16777216, not {} (--chunk-size)", path.string(),
         config.chunk_size);
  }
  if (config.top_k < 1 || config.top_k > (int64_t{1} << 24)) {
    fail("{}: the number of chunks that a query sees must be from 1 to 16777216, not {} (--chunk-top-k)",
         path.string(), config.top_k);
  }
}

ModelConfig find_config(const Checkpoint& checkpoint) {
  const Catalog& catalog = checkpoint.catalog;
  ModelConfig config;
  const ConstView embedding = needed(checkpoint, "emb.weight", 2).data;
  config.vocab = embedding.dim(0);
  config.channels = embedding.dim(1);
  const auto count = static_cast<int64_t>(catalog.tensors().size());
  const auto blocks = [&](std::string_view prefix) {
    const int64_t last = highest_index(catalog, prefix);
    if (last >= count) {
      fail("{}: block {}{} is numbered beyond the {} tensors that the file holds", catalog.path.string(),
           prefix, last, count);
    }
    return last + 1;
  };
  config.layers = blocks("blocks.");
  config.sparse_blocks = blocks("moba.");
  if (config.sparse_blocks > config.layers) {
    fail("{}: {} sparse blocks among {} RWKV-7 blocks; there cannot be more sparse blocks than others",
         catalog.path.string(), config.sparse_blocks, config.layers);
  }
  config.decay_rank = needed(checkpoint, "blocks.0.att.w1", 2).data.dim(0);
  config.rate_rank = needed(checkpoint, "blocks.0.att.a1", 2).data.dim(0);
  config.gate_rank = needed(checkpoint, "blocks.0.att.g1", 2).data.dim(0);
  config.value_rank = config.layers > 1 ? needed(checkpoint, "blocks.1.att.v1", 2).data.dim(0) : 0;
  config.ffn = needed(checkpoint, "blocks.0.ffn.key.weight", 2).data.dim(0);
  if (config.channels < 64 || config.channels % 64 != 0) {
    fail("{}: {} channels; RWKV-7 has a multiple of 64 (tensor emb.weight is {})", catalog.path.string(),
         config.channels, embedding.shape().str());
  }
  for (const int64_t size :
       {config.vocab, config.ffn, config.decay_rank, config.rate_rank, config.gate_rank}) {
    if (size < 1 || size > (int64_t{1} << 31))
      fail("{}: a matrix has an impossible size, {}", catalog.path.string(), size);
  }
  return config;
}

std::optional<EmbeddedVocabulary> find_vocabulary(const Catalog& catalog) {
  const auto tokens = catalog.metadata.find("tokenizer.ggml.tokens");
  const auto model = catalog.metadata.find("tokenizer.ggml.model");
  if (tokens == catalog.metadata.end() || model == catalog.metadata.end()) return std::nullopt;
  const auto* list = std::get_if<std::vector<std::string>>(&tokens->second);
  const auto* kind = std::get_if<std::string>(&model->second);
  if (list == nullptr || kind == nullptr) {
    fail("{}: the tokenizer's metadata has the wrong type; convert the model anew", catalog.path.string());
  }
  EmbeddedVocabulary vocabulary{*kind, *list, {}};
  if (const auto types = catalog.metadata.find("tokenizer.ggml.token_type");
      types != catalog.metadata.end()) {
    if (const auto* numbers = std::get_if<std::vector<int64_t>>(&types->second);
        numbers && numbers->size() == list->size()) {
      vocabulary.types.assign(numbers->begin(), numbers->end());
    }
  }
  return vocabulary;
}

}  // namespace

std::string_view name(Dialect dialect) {
  switch (dialect) {
    case Dialect::rwkv:
      return "RWKV-LM";
    case Dialect::fla:
      return "flash-linear-attention";
    case Dialect::gguf:
      return "GGUF";
  }
  return "?";
}

std::string Checkpoint::file_name_of(const std::string& canonical) const {
  if (dialect == Dialect::gguf) return dialects::gguf_name(canonical);
  if (dialect == Dialect::fla) return dialects::fla_name(canonical);
  return prefixed && !canonical.starts_with("moba.") ? "rwkv." + canonical : canonical;
}

std::shared_ptr<const Checkpoint> open_checkpoint(const Path& path, const CheckpointOptions& options) {
  Catalog file = open_catalog(path);
  auto checkpoint = std::make_shared<Checkpoint>();
  if (file.format == FileFormat::gguf) {
    const std::string* architecture = file.text("general.architecture");
    if (architecture == nullptr || (*architecture != "rwkv7" && *architecture != "rwkvx")) {
      fail("{}: a GGUF model of architecture '{}'; rwkvx runs 'rwkv7' and 'rwkvx'", path.string(),
           architecture == nullptr ? "(none)" : printable(*architecture));
    }
    checkpoint->dialect = Dialect::gguf;
    checkpoint->catalog = dialects::canonical_gguf(std::move(file));
  } else if (file.find("model.embeddings.weight") != nullptr) {
    checkpoint->dialect = Dialect::fla;
    checkpoint->catalog = dialects::canonical_fla(std::move(file));
  } else {
    checkpoint->dialect = Dialect::rwkv;
    checkpoint->prefixed = file.find("rwkv.emb.weight") != nullptr;
    checkpoint->catalog = dialects::canonical_rwkv(std::move(file));
  }
  ModelConfig& config = checkpoint->config;
  const Catalog& catalog = checkpoint->catalog;
  config = find_config(*checkpoint);
  const auto chunk = recorded(catalog, kChunkSizeKey), top_k = recorded(catalog, kTopKKey);
  checkpoint->chunk_settings_recorded = chunk && top_k;
  config.chunk_size = options.chunk_size.value_or(chunk.value_or(config.chunk_size));
  config.top_k = options.top_k.value_or(top_k.value_or(config.top_k));
  check_chunk_settings(config, path);
  place_as_recorded(catalog, config);
  if (config.sparse_blocks > 0 && !(options.chunk_size || chunk)) {
    log_warning(
        "{} does not record its chunk size and top-k; assuming {} and {} (--chunk-size, --chunk-top-k)",
        path.string(), config.chunk_size, config.top_k);
  }
  checkpoint->vocabulary = find_vocabulary(catalog);
  return checkpoint;
}

}  // namespace rwkvx
