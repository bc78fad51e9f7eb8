#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/generator.h"
#include "tokenizer/chat_template.h"

namespace rwkvx {

struct ConversationOptions {
  ChatTemplate format;
  SamplerOptions sampler;
  GenerationOptions generation;  ///< stop strings are the template's, besides those given
};

/// A chat: turns with a model, each of which can be taken back, for the state before it is kept (KV pages are
/// shared).
class Conversation {
 public:
  Conversation(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
               ConversationOptions options);

  struct Turn {
    std::string message, answer;
  };
  const std::vector<Turn>& turns() const { return turns_; }
  const Session& session() const { return session_; }

  /// Feeds a message and streams the answer. When it throws, the conversation is as it was before.
  Generation say(std::string_view message, const std::function<void(std::string_view)>& show,
                 const std::atomic<bool>* interrupted = nullptr, const Progress& progress = {});
  /// Answers the last message anew, with other random numbers. Errors: no turn that can be taken back.
  Generation regenerate(const std::function<void(std::string_view)>& show,
                        const std::atomic<bool>* interrupted = nullptr, const Progress& progress = {});
  /// Takes back the last turn. Errors: no turn that can be taken back.
  void undo();
  void reset();

  void save(const Path& path) const;
  /// Errors: those of Session::load; a file that holds no conversation. The conversation is then unchanged.
  void load(const Path& path);

 private:
  static constexpr size_t kUndoDepth = 64;
  void need_turn() const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  ConversationOptions options_;
  Session session_;
  std::vector<Turn> turns_;
  std::string answered_;  ///< bytes of the last answer's tokens, stop string included
  struct Before {
    Session session;
    std::string answered;
  };
  std::vector<Before> before_;  ///< of the last turns, at most kUndoDepth
  uint64_t answers_ = 0;        ///< drawn so far, so that each gets random numbers of its own
};

}  // namespace rwkvx
