#include "tokenizer/tokenizer.h"

#include "base/error.h"

namespace rwkvx {

std::vector<TokenId> Tokenizer::encode(std::string_view bytes) const {
  std::vector<TokenId> ids;
  encode(bytes, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids) const {
  std::string bytes;
  for (TokenId id : ids) bytes += token_bytes(id);
  return bytes;
}

void check_token_id(TokenId id, int64_t vocab_size) {
  if (id < 0 || id >= vocab_size) {
    fail("token id {} is not in the vocabulary, whose ids run from 0 to {}", id, vocab_size - 1);
  }
}

}  // namespace rwkvx
