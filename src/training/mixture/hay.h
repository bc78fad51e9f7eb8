#pragma once

#include "training/mixture/sample_source.h"

namespace rwkvx {

/// The text that generated samples hide things in: the repeated noise of the pass key task, or a token file.
class Hay {
 public:
  /// Of the fields "haystack" ("noise" or "text") and "data".
  Hay(Fields& fields, const SourceSetup& setup, const std::string& otherwise);

  bool is_noise() const { return !file_; }
  /// `size` tokens: of the noise from its beginning, with `separator` between repetitions; of a text from a
  /// random place on, near it the beginning of a sentence.
  std::vector<TokenId> draw(size_t size, std::string_view separator, Random& random) const;
  /// The last place at or before `place` that a sentence ends at; `place` itself when none is near. A place
  /// is the number of tokens before it.
  size_t sentence_end_before(std::span<const TokenId> tokens, size_t place) const;

 private:
  const Tokenizer* tokenizer_;
  int64_t vocab_;
  std::optional<TokenFile> file_;
  std::vector<bool> ends_;  // of each token: a sentence ends with it
};

}  // namespace rwkvx
