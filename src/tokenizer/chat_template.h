#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rwkvx {

/// How an answer begins. G1 models were trained on these beginnings, cut where the next token decides (hence
/// no final '>').
enum class Thinking {
  none,     ///< the model begins as it likes
  think,    ///< " <think": the model reasons first
  pretend,  ///< " <think>\n</think": the model believes it has reasoned and answers at once
};

/// The text with which the answer is opened for the model, "" for Thinking::none.
std::string_view answer_opening(Thinking thinking);

/// A message as World and G1 models were trained on it, where a blank line ends a turn: \r\n and \r become
/// \n, blank lines go, and white space at both ends.
std::string clean_message(std::string_view message);

/// The chat format of World and G1 models (https://huggingface.co/BlinkDL/rwkv7-g1):
///   System: …\n\nUser: …\n\nAssistant: …\n\nUser: …\n\nAssistant:
/// without a space at the end. A recurrent state already holds the earlier turns, so each function gives only
/// what is to be fed next.
struct ChatTemplate {
  std::string system = {};  ///< what the model is told first; empty: nothing
  Thinking thinking = Thinking::none;

  /// For a state that has seen nothing.
  std::string first_turn(std::string_view message) const;
  /// For a state that has seen an answer. `answered`: the bytes of all tokens of that answer that the model
  /// was given; when they end with the beginning of the next turn ("\n\nUser", as after a stop), only the
  /// rest follows.
  std::string next_turn(std::string_view message, std::string_view answered) const;

  /// Where an answer ends beside the end-of-document token: at a turn of either side, as RWKV-Runner does. A
  /// single line break before "User:" does not count, it can be part of an answer.
  static std::vector<std::string> stop_strings();
};

}  // namespace rwkvx
