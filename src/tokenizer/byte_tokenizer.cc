#include <array>

#include "tokenizer/tokenizer.h"

namespace rwkvx {
namespace {

constexpr size_t kBytes = 256;

class ByteTokenizer final : public Tokenizer {
 public:
  ByteTokenizer() {
    for (size_t i = 0; i < kBytes; ++i) bytes_[i] = static_cast<char>(i);
  }

  std::string_view name() const override { return "byte"; }
  int64_t vocab_size() const override { return kBytes; }

  using Tokenizer::encode;
  void encode(std::string_view bytes, std::vector<TokenId>& out) const override {
    const size_t start = out.size();
    out.resize(start + bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) out[start + i] = static_cast<unsigned char>(bytes[i]);
  }

  std::string_view token_bytes(TokenId id) const override {
    check_token_id(id, kBytes);
    return {&bytes_[static_cast<size_t>(id)], 1};
  }

  TokenId end_of_document() const override { return -1; }

 private:
  std::array<char, kBytes> bytes_;
};

}  // namespace

std::shared_ptr<const Tokenizer> make_byte_tokenizer() { return std::make_shared<ByteTokenizer>(); }

}  // namespace rwkvx
