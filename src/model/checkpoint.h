#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "formats/catalog.h"
#include "model/config.h"
#include "model/tensor_list.h"

namespace rwkvx {

/// How a file names and lays out the tensors of a model.
enum class Dialect {
  rwkv,  ///< RWKV-LM (`blocks.0.…`) and RWKV-X (`rwkv.blocks.0.…`, `moba.0.…`) checkpoints
  fla,   ///< Hugging Face files of flash-linear-attention (`model.layers.0.…`)
  gguf,  ///< llama.cpp's `rwkv7` and our `rwkvx`
};
std::string_view name(Dialect dialect);

/// Vocabulary carried by a file (GGUF).
struct EmbeddedVocabulary {
  std::string model;                ///< "rwkv" (escaped literals); others are not known
  std::vector<std::string> tokens;  ///< as written in the file
  std::vector<int32_t> types;       ///< as many as tokens, or none
};

/// A checkpoint under one set of names and in the layout the model computes with, whatever file it came from:
/// public names without prefix, low-rank matrices [out, in], token-shift coefficients one by one.
struct Checkpoint {
  ModelConfig config;
  Dialect dialect = Dialect::rwkv;
  bool prefixed = false;                 ///< the file's names begin with `rwkv.` (RWKV-X)
  bool chunk_settings_recorded = false;  ///< the file says chunk size and top-k
  std::optional<EmbeddedVocabulary> vocabulary;
  Catalog catalog;  ///< canonical names; views into the file or into memory it keeps

  const Path& path() const { return catalog.path; }
  /// The name that the file itself uses for a canonical name, for messages.
  std::string file_name_of(const std::string& canonical) const;
};

struct CheckpointOptions {
  std::optional<int64_t> chunk_size, top_k;  ///< override what the file records, or the defaults 2048 and 3
};

/// Opens a model file of any format and dialect and finds its sizes.
/// Errors: not an RWKV-7 or RWKV-X model (says what it looks like), sizes that contradict each other.
std::shared_ptr<const Checkpoint> open_checkpoint(const Path& path, const CheckpointOptions& options = {});

/// Metadata of .safetensors and .gguf files, in both as text or, the first two, as a number.
inline constexpr const char *kChunkSizeKey = "rwkvx.chunk_size", *kTopKKey = "rwkvx.top_k",
                            *kSparseAfterKey = "rwkvx.sparse_after";

namespace dialects {
/// Rename and relayout a file's catalog; the result keeps the file's memory. Only names and layouts: sizes
/// are checked by open_checkpoint and LoadedWeights.
Catalog canonical_rwkv(Catalog file);
Catalog canonical_fla(Catalog file);
Catalog canonical_gguf(Catalog file);
}  // namespace dialects

}  // namespace rwkvx
