#include "training/mixture/hay.h"

#include <algorithm>

#include "base/error.h"
#include "retrieval/needle_task.h"
#include "retrieval/sentence.h"

namespace rwkvx {
namespace {

constexpr size_t kFarthest = 2048;  ///< tokens to the end of a sentence

}  // namespace

Hay::Hay(Fields& fields, const SourceSetup& setup, const std::string& otherwise)
    : tokenizer_(&setup.tokenizer), vocab_(setup.vocab) {
  const std::string kind = fields.text("haystack", otherwise);
  const std::string data = fields.text("data", "");
  if (kind != "noise" && kind != "text") fields.refuse("haystack", "\"noise\" or \"text\"");
  if (kind == "text") {
    file_ = setup.open(data);
    if (file_->tokens() < 2) fail("{}: there is no text in it", file_->path().string());
  } else if (!data.empty()) {
    fail("{}: \"data\" is for a \"haystack\" of \"text\"", fields.where());
  }
  for (TokenId id = 0; id < setup.tokenizer.vocab_size(); ++id)
    ends_.push_back(ends_sentence(setup.tokenizer.token_bytes(id)));
}

std::vector<TokenId> Hay::draw(size_t size, std::string_view separator, Random& random) const {
  std::vector<TokenId> out;
  if (!file_) {
    const std::vector<TokenId> once = tokenizer_->encode(noise_text(separator));
    while (out.size() < size) out.insert(out.end(), once.begin(), once.end());
    out.resize(size);
    return out;
  }
  // Some more, to begin with a sentence; a text that is too short begins anew.
  const uint64_t all = file_->tokens(), begin = random.next() % all;
  const size_t more = std::min<size_t>(size, 256);
  out.resize(size + more);
  for (size_t at = 0; at < out.size();) {
    const uint64_t from = (begin + at) % all;
    const size_t count = std::min<uint64_t>(out.size() - at, all - from);
    file_->read(from, std::span(out).subspan(at, count), vocab_);
    at += count;
  }
  size_t first = 0;
  while (first < more && !ends_[static_cast<size_t>(out[first])]) ++first;
  first = first < more ? first + 1 : 0;
  out.erase(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(first));
  out.resize(size);
  return out;
}

size_t Hay::sentence_end_before(std::span<const TokenId> tokens, size_t place) const {
  const size_t least = place > kFarthest ? place - kFarthest : 0;
  for (size_t p = place; p > least; --p) {
    if (ends_[static_cast<size_t>(tokens[p - 1])]) return p;
  }
  return least == 0 ? 0 : place;
}

}  // namespace rwkvx
