#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "training/token_marks.h"

namespace rwkvx {

/// What a token is to one who reads up to it. Weights of losses go by it.
enum class TokenRole : uint8_t {
  text,    ///< words around
  random,  ///< drawn at random: nobody can know it
  answer,  ///< was said before, and is asked for
};

/// A sequence that is being made.
struct Sample {
  struct Range {
    size_t begin = 0, end = 0;
  };
  std::vector<TokenId> tokens;
  std::vector<TokenRole> roles;   ///< of each token
  std::vector<TokenMark> marks;   ///< of each token: in place of weights by roles, and resets; empty: none
  std::vector<Range> answers;     ///< tokens that belong together; right when all of them are
  std::vector<size_t> questions;  ///< tokens at which questions begin

  size_t size() const { return tokens.size(); }
  void append(std::span<const TokenId> more, TokenRole role);
  void append(const Sample& more);
  /// Drops what is behind `size`; answers that it cuts are answers no longer.
  void cut(size_t size);
};

/// Text whose parts have roles, to be tokenized as one.
class MarkedText {
 public:
  MarkedText& add(std::string_view text, TokenRole role = TokenRole::text);
  /// `form` with {key} and {value} replaced. The key and the first value are random, the rest is text.
  MarkedText& add_statement(std::string_view form, std::string_view key, std::string_view value);
  /// A token that holds bytes of several roles has the most special of them.
  void append_to(Sample& sample, const Tokenizer& tokenizer) const;

 private:
  std::string text_;
  std::vector<TokenRole> roles_;  // of each byte
};

/// A question, and its answer tokenized apart, as they are when a model is asked.
Sample question_and_answer(std::string_view question, std::string_view answer, const Tokenizer& tokenizer);

}  // namespace rwkvx
