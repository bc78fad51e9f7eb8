#pragma once

#include <memory>
#include <optional>
#include <string>

#include "model/checkpoint_writer.h"
#include "model/model.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

struct ModelOptions {
  Path path;
  std::optional<int64_t> chunk_size, top_k;  ///< for checkpoints that do not record them
  std::optional<Path> vocabulary;            ///< overrides what the file carries
  std::string backend = "cpu";
  Precision precision = Precision::bf16;
  int threads = 0;  ///< 0: all cores
  KvOptions kv;
};

/// Opens the checkpoint and readies it on a backend.
std::shared_ptr<const Model> load_model(const ModelOptions& options);

/// The tokenizer of a checkpoint: `vocabulary` if given, else the one in the file, else bytes for a
/// vocabulary of 256, else, for World vocabularies, rwkv_vocab_v20230424.txt beside the file or where the
/// environment variable RWKVX_VOCAB points. Errors: none found; one that does not fit the model.
std::shared_ptr<const Tokenizer> load_tokenizer(const Checkpoint& checkpoint,
                                                const std::optional<Path>& vocabulary);
/// A vocabulary by itself: a World file, or "byte".
std::shared_ptr<const Tokenizer> load_vocabulary(const Path& path);
/// Null instead of an error when there is none.
std::shared_ptr<const Tokenizer> find_tokenizer(const Checkpoint& checkpoint,
                                                const std::optional<Path>& vocabulary);

/// For writing into GGUF.
EmbeddedVocabulary embedded_vocabulary(const Tokenizer& tokenizer, int64_t model_vocab);

}  // namespace rwkvx
