#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"

namespace rwkvx {

using TokenId = int32_t;

/// Bytes to token ids and back. Any bytes encode, and decode(encode(x)) == x.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string_view name() const = 0;  ///< "world", "byte"
  /// Ids run from 0 to vocab_size() - 1; some may have no bytes (World: 0, end of document).
  virtual int64_t vocab_size() const = 0;
  virtual void encode(std::string_view bytes, std::vector<TokenId>& out) const = 0;
  /// The bytes of one token, empty when it has none. Errors: an id out of range.
  virtual std::string_view token_bytes(TokenId id) const = 0;
  /// The token that ends a document, -1 when there is none.
  virtual TokenId end_of_document() const = 0;

  std::vector<TokenId> encode(std::string_view bytes) const;
  std::string decode(std::span<const TokenId> ids) const;
};

/// Token i is byte i.
std::shared_ptr<const Tokenizer> make_byte_tokenizer();

/// World vocabulary: greedy longest match over a trie of bytes. tokens[i] are the bytes of token i (empty:
/// none). Errors: a single byte that no token covers, two ids with the same bytes.
std::shared_ptr<const Tokenizer> make_world_tokenizer(std::vector<std::string> tokens);

/// rwkv_vocab_v20230424.txt: lines of `id literal length`, the literal a Python str or bytes literal.
/// Errors name the file and the line.
std::shared_ptr<const Tokenizer> read_world_vocabulary(const Path& path);

/// Python literals of the vocabulary ('\n', b'\xff', "it's"), used by the vocabulary file; the GGUF escapes
/// of llama.cpp's RWKV converter are the inside of such a literal. Throws Error on malformed ones.
std::string unescape_python_literal(std::string_view literal);
/// The inside of a bytes literal, repr(bytes)[2:-1], back to its bytes. Throws Error on malformed escapes.
std::string unescape_python_bytes(std::string_view escaped);
/// Its inverse, exactly repr(bytes)[2:-1]: what llama.cpp's converter writes into GGUF.
std::string escape_python_bytes(std::string_view bytes);

/// Throws Error unless 0 <= id < vocab_size.
void check_token_id(TokenId id, int64_t vocab_size);

}  // namespace rwkvx
