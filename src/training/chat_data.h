#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/file.h"
#include "tokenizer/tokenizer.h"
#include "training/training_data.h"

namespace rwkvx {

struct ChatTurn {
  enum class Role { system, user, assistant };
  Role role;
  std::string text;
};

/// The turns of one JSON object, in any of the forms that are in use:
///   {"messages": [{"role": "user", "content": "…"}, …]}                      (OpenAI)
///   {"conversations": [{"from": "human" or "gpt", "value": "…"}, …]}         (ShareGPT)
/// Errors say what is wrong, without the place.
std::vector<ChatTurn> chat_turns(std::string_view line);

struct ChatOptions {
  int64_t context = 4096;  ///< longer conversations are cut
  uint64_t seed = 0;       ///< of the order
  int64_t vocab = 0;
};

/// Supervised fine-tuning: conversations in the template of World and G1 models (chat_template.h), each a
/// sequence of its own. Only what the assistant says counts, and the "\n\n" behind it, from which the model
/// learns to end a turn; at the end of a conversation the end-of-document token where there is one.
/// All conversations are held in memory as tokens. Errors name the file and the line; a conversation in which
/// the assistant says nothing is an error too.
std::unique_ptr<TrainingData> read_chat_data(const Path& path, const Tokenizer& tokenizer,
                                             const ChatOptions& options);

}  // namespace rwkvx
