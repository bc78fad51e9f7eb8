#include "runtime/model_loader.h"

#include <cstdlib>

#include "base/error.h"
#include "tokenizer/gguf_vocabulary.h"

namespace rwkvx {
namespace {

constexpr const char* kWorldFile = "rwkv_vocab_v20230424.txt";
constexpr int64_t kWorldSize = 65536;

/// Files for vocabularies without text (goldens, random models) carry only unused tokens.
bool has_text(const Tokenizer& tokenizer) {
  for (TokenId id = 0; id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.token_bytes(id).empty()) return true;
  }
  return false;
}

bool only_unused(const EmbeddedVocabulary& vocabulary) {
  for (size_t i = 0; i < vocabulary.tokens.size(); ++i) {
    if (vocabulary.tokens[i] != fmt::format("[PAD{}]", i)) return false;
  }
  return true;
}

}  // namespace

std::shared_ptr<const Model> load_model(const ModelOptions& options) {
  auto checkpoint = open_checkpoint(options.path, {options.chunk_size, options.top_k});
  std::shared_ptr<Ops> ops = make_ops({options.backend, options.precision, options.threads});
  return std::make_shared<const Model>(std::move(checkpoint), std::move(ops), options.kv);
}

std::shared_ptr<const Tokenizer> load_vocabulary(const Path& path) {
  return path == "byte" ? make_byte_tokenizer() : read_world_vocabulary(path);
}

std::shared_ptr<const Tokenizer> find_tokenizer(const Checkpoint& checkpoint,
                                                const std::optional<Path>& vocabulary) {
  std::shared_ptr<const Tokenizer> found;
  std::string source;
  if (vocabulary) {
    found = load_vocabulary(*vocabulary);
    source = vocabulary->string();
  } else if (checkpoint.vocabulary && !only_unused(*checkpoint.vocabulary)) {
    if (checkpoint.vocabulary->model != "rwkv") {
      fail("{}: carries a tokenizer of kind '{}'; rwkvx knows 'rwkv' (pass --vocab)",
           checkpoint.path().string(), printable(checkpoint.vocabulary->model));
    }
    try {
      found = from_gguf_vocabulary({checkpoint.vocabulary->tokens, checkpoint.vocabulary->types});
    } catch (const Error& error) {
      fail("{}: {}", checkpoint.path().string(), error.what());
    }
    source = checkpoint.path().string();
  } else if (checkpoint.config.vocab == 256) {
    found = make_byte_tokenizer();
    source = "bytes";
  } else if (checkpoint.config.vocab == kWorldSize) {
    Path path = checkpoint.path().parent_path() / kWorldFile;
    if (const char* variable = std::getenv("RWKVX_VOCAB");
        variable != nullptr && !std::filesystem::exists(path)) {
      path = variable;
    }
    if (!std::filesystem::exists(path)) return nullptr;
    found = read_world_vocabulary(path);
    source = path.string();
  }
  if (found == nullptr || !has_text(*found)) return nullptr;
  if (found->vocab_size() > checkpoint.config.vocab) {
    fail("{}: a vocabulary of {} tokens does not fit the model {}, whose vocabulary has {}", source,
         found->vocab_size(), checkpoint.path().string(), checkpoint.config.vocab);
  }
  return found;
}

std::shared_ptr<const Tokenizer> load_tokenizer(const Checkpoint& checkpoint,
                                                const std::optional<Path>& vocabulary) {
  auto found = find_tokenizer(checkpoint, vocabulary);
  if (found == nullptr) {
    fail(
        "{}: no tokenizer for its vocabulary of {}; pass --vocab {} (it comes with RWKV World checkpoints "
        "and in the "
        "PyPI package 'rwkv'), or convert the model to GGUF once with --vocab",
        checkpoint.path().string(), checkpoint.config.vocab, kWorldFile);
  }
  return found;
}

EmbeddedVocabulary embedded_vocabulary(const Tokenizer& tokenizer, int64_t model_vocab) {
  GgufVocabulary v = to_gguf_vocabulary(tokenizer, model_vocab);
  return {"rwkv", std::move(v.tokens), std::move(v.types)};
}

}  // namespace rwkvx
