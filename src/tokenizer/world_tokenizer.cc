#include <array>
#include <cstdint>

#include "base/error.h"
#include "tokenizer/byte_trie.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {
namespace {

class WorldTokenizer final : public Tokenizer {
 public:
  explicit WorldTokenizer(const std::vector<std::string>& tokens) : trie_(tokens) {
    size_t total = 0;
    for (const std::string& token : tokens) total += token.size();
    bytes_.reserve(total);
    starts_.reserve(tokens.size() + 1);
    for (const std::string& token : tokens) {
      starts_.push_back(bytes_.size());
      bytes_ += token;
    }
    starts_.push_back(bytes_.size());
  }

  std::string_view name() const override { return "world"; }
  int64_t vocab_size() const override { return static_cast<int64_t>(starts_.size()) - 1; }

  using Tokenizer::encode;
  void encode(std::string_view bytes, std::vector<TokenId>& out) const override {
    // Through a small block: push_back would check the capacity for every token, and the number of tokens is
    // not known beforehand.
    std::array<TokenId, 1024> block;
    size_t used = 0;
    while (!bytes.empty()) {
      const ByteTrie::Match match = trie_.longest_prefix(bytes);
      bytes.remove_prefix(match.length);
      block[used++] = match.value;
      if (used == block.size()) {
        out.insert(out.end(), block.begin(), block.end());
        used = 0;
      }
    }
    out.insert(out.end(), block.begin(), block.begin() + static_cast<std::ptrdiff_t>(used));
  }

  std::string_view token_bytes(TokenId id) const override {
    check_token_id(id, vocab_size());
    const auto i = static_cast<size_t>(id);
    return std::string_view(bytes_).substr(starts_[i], starts_[i + 1] - starts_[i]);
  }

  TokenId end_of_document() const override { return token_bytes(0).empty() ? 0 : -1; }

 private:
  ByteTrie trie_;
  std::string bytes_;           ///< all tokens, one behind the other
  std::vector<size_t> starts_;  ///< token i is bytes_[starts_[i], starts_[i + 1])  [vocab_size + 1]
};

}  // namespace

std::shared_ptr<const Tokenizer> make_world_tokenizer(std::vector<std::string> tokens) {
  return std::make_shared<WorldTokenizer>(tokens);
}

}  // namespace rwkvx
