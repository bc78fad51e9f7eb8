#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "model/model.h"

namespace rwkvx {

/// One conversation with a model: a state, and the tokens appended to it but not yet consumed. Tokens are
/// consumed when logits are asked for, streamed through in segments, so that prompts of any length need
/// bounded work space.
class Session {
 public:
  explicit Session(std::shared_ptr<const Model> model);

  void append(std::span<const int32_t> tokens);
  void append(int32_t token) { append(std::span(&token, 1)); }
  /// Logits [V] after the last token, valid until the next call. `progress` counts tokens and may throw to
  /// stop: what it has not reported stays pending, and the session is usable. Errors: no token was ever
  /// appended.
  std::span<const float> logits(const Progress& progress = {});

  /// Tokens appended, consumed or not.
  int64_t length() const { return state_.position() + static_cast<int64_t>(pending_.size()); }
  const State& state() const { return state_; }
  const Model& model() const { return *model_; }
  /// A copy that goes its own way; KV pages are shared.
  Session fork() const;
  void reset();

  /// Tokens that are consumed at a time.
  int64_t segment_rows() const;

  /// Consumes all pending tokens but the last, so that what is saved or forked next is ready to continue
  /// from.
  void settle(const Progress& progress = {}) { consume(1, progress); }

  /// The state, the pending tokens and `extra` (any JSON text), bound to the model. Computes nothing: an
  /// interrupted prompt goes on where it stopped. Errors: those of save_state.
  void save(const Path& path, std::string_view extra) const;
  /// Replaces this session; returns `extra`. Errors: those of load_state; the session is then unchanged.
  std::string load(const Path& path);

 private:
  void consume(size_t keep, const Progress& progress);
  View logits_memory();
  /// Of the last consumed token; empty when unknown.
  std::span<const float> known_logits() const;

  std::shared_ptr<const Model> model_;
  State state_;
  std::shared_ptr<Arena> arena_;
  std::vector<int32_t> pending_;
  Buffer logits_;  // [1, V], made when first needed
  bool logits_known_ = false;
};

}  // namespace rwkvx
