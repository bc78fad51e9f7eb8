#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace rwkvx {

/// GGUF's tokenizer.ggml.tokens and tokenizer.ggml.token_type, as llama.cpp's converter writes them for RWKV
/// (tokenizer.ggml.model "rwkv"): the bytes of a token as the inside of a Python bytes literal, `<s>` for the
/// end of a document, and `[PAD65530]` for ids of the model that the vocabulary does not have.
struct GgufVocabulary {
  static constexpr int32_t kNormal = 1, kControl = 3, kUnused = 5;  ///< llama.cpp's token types
  std::vector<std::string> tokens;
  std::vector<int32_t> types;  ///< as many as tokens
};

/// Padded to model_vocab_size, the rows of the model's embedding. Errors: a model with fewer rows than
/// tokens.
GgufVocabulary to_gguf_vocabulary(const Tokenizer& tokenizer, int64_t model_vocab_size);

/// The byte tokenizer where token i is byte i for all 256, World otherwise. Files that hold whole literals
/// ('\n', b'\xff') instead of their insides are read too. `types` may be empty: then an id 0 of `<s>` and
/// `[PAD…]` are told from their text. Errors name the token.
std::shared_ptr<const Tokenizer> from_gguf_vocabulary(const GgufVocabulary& vocabulary);

}  // namespace rwkvx
