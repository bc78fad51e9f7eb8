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

/// A part of something that a sample says several times: what stands behind `place` bytes (or tokens, where
/// it was never bytes) of it.
struct ThingPart {
  int64_t thing = -1;  ///< a number of its own in the sample; −1: nothing
  int64_t place = 0;
  ThingPart behind(size_t count) const { return {thing, place + static_cast<int64_t>(count)}; }
};

/// A sequence that is being made.
struct Sample {
  struct Range {
    size_t begin = 0, end = 0;
  };
  /// A token that says a part of a thing.
  struct Mention {
    size_t token = 0;
    ThingPart part;
  };
  std::vector<TokenId> tokens;
  std::vector<TokenRole> roles;   ///< of each token
  std::vector<TokenMark> marks;   ///< of each token: in place of weights by roles, and resets; empty: none
  std::vector<Range> answers;     ///< tokens that belong together; right when all of them are
  std::vector<size_t> questions;  ///< tokens at which questions begin
  std::vector<Mention> mentions;  ///< in any order

  size_t size() const { return tokens.size(); }
  void append(std::span<const TokenId> more, TokenRole role);
  /// Tokens of a thing; `from` is the first one's part.
  void append(std::span<const TokenId> more, TokenRole role, ThingPart from);
  void append(const Sample& more);
  /// Drops what is behind `size`; answers that it cuts are answers no longer.
  void cut(size_t size);
  /// For each token that says what an earlier one said, the number of the last such token; else −1.
  std::vector<int64_t> earlier_mentions() const;
};

/// Text whose parts have roles, to be tokenized as one.
class MarkedText {
 public:
  /// `from`: the part that the first byte is.
  MarkedText& add(std::string_view text, TokenRole role = TokenRole::text, ThingPart from = {});
  /// `form` with {key} and {value} replaced; `thing` is the value. The key and the first value are random,
  /// the rest is text.
  MarkedText& add_statement(std::string_view form, std::string_view key, std::string_view value,
                            int64_t thing);
  /// A token that holds bytes of several roles has the most special of them; it is part of the thing that its
  /// first byte is part of.
  void append_to(Sample& sample, const Tokenizer& tokenizer) const;

 private:
  std::string text_;
  std::vector<TokenRole> roles_;  // of each byte
  std::vector<ThingPart> parts_;
};

/// A question, and its answer tokenized apart, as they are when a model is asked.
Sample question_and_answer(std::string_view question, const MarkedText& answer, const Tokenizer& tokenizer);

}  // namespace rwkvx
