#include "tokenizer/gguf_vocabulary.h"

#include <algorithm>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr std::string_view kEndOfDocument = "<s>";

std::string padding(size_t id) { return fmt::format("[PAD{}]", id); }

/// Whether the id stands for no bytes. Types say so; without them only the names that the converter gives do.
bool has_no_bytes(const GgufVocabulary& vocabulary, size_t id) {
  if (!vocabulary.types.empty()) return vocabulary.types[id] != GgufVocabulary::kNormal;
  return (id == 0 && vocabulary.tokens[id] == kEndOfDocument) || vocabulary.tokens[id] == padding(id);
}

/// 'x', "x", b'x' or b"x" from the first character to the last.
bool is_quoted(std::string_view token) {
  if (token.starts_with('b')) token.remove_prefix(1);
  return token.size() >= 3 && (token.front() == '\'' || token.front() == '"') &&
         token.back() == token.front();
}

/// Every real vocabulary has single letters, whose insides are not quoted, so one look at all tells the two
/// apart.
bool holds_whole_literals(const GgufVocabulary& vocabulary) {
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    if (!has_no_bytes(vocabulary, id) && !is_quoted(vocabulary.tokens[id])) return false;
  }
  return true;
}

bool is_byte_vocabulary(const std::vector<std::string>& tokens) {
  if (tokens.size() != 256) return false;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].size() != 1 || static_cast<unsigned char>(tokens[i][0]) != i) return false;
  }
  return true;
}

}  // namespace

GgufVocabulary to_gguf_vocabulary(const Tokenizer& tokenizer, int64_t model_vocab_size) {
  if (model_vocab_size < tokenizer.vocab_size()) {
    fail("the tokenizer has {} tokens and the model only {}: they do not belong together",
         tokenizer.vocab_size(), model_vocab_size);
  }
  GgufVocabulary vocabulary;
  for (int64_t i = 0; i < model_vocab_size; ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string_view bytes =
        i < tokenizer.vocab_size() ? tokenizer.token_bytes(id) : std::string_view();
    if (!bytes.empty()) {
      vocabulary.tokens.push_back(escape_python_bytes(bytes));
      vocabulary.types.push_back(GgufVocabulary::kNormal);
    } else if (id == tokenizer.end_of_document()) {
      vocabulary.tokens.emplace_back(kEndOfDocument);
      vocabulary.types.push_back(GgufVocabulary::kControl);
    } else {
      vocabulary.tokens.push_back(padding(static_cast<size_t>(i)));
      vocabulary.types.push_back(GgufVocabulary::kUnused);
    }
  }
  return vocabulary;
}

std::shared_ptr<const Tokenizer> from_gguf_vocabulary(const GgufVocabulary& vocabulary) {
  if (!vocabulary.types.empty() && vocabulary.types.size() != vocabulary.tokens.size()) {
    fail("the file has {} tokens but {} token types", vocabulary.tokens.size(), vocabulary.types.size());
  }
  const bool whole = holds_whole_literals(vocabulary);
  std::vector<std::string> tokens(vocabulary.tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (has_no_bytes(vocabulary, id)) continue;
    const std::string& text = vocabulary.tokens[id];
    try {
      tokens[id] = whole ? unescape_python_literal(text) : unescape_python_bytes(text);
    } catch (const Error& error) {
      fail("token {} of the vocabulary, '{}': {}", id, printable(text), error.what());
    }
  }
  if (is_byte_vocabulary(tokens)) return make_byte_tokenizer();
  // Padding at the end is the model's matter, not the vocabulary's.
  while (!tokens.empty() && tokens.back().empty()) tokens.pop_back();
  return make_world_tokenizer(std::move(tokens));
}

}  // namespace rwkvx
