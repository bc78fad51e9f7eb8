#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/model.h"

namespace rwkvx {

/// The logits of a whole text in bounded work space: the text is streamed through a state, and logits exist
/// for a slice of it at a time.
class LogitsStream {
 public:
  explicit LogitsStream(std::shared_ptr<const Model> model);

  /// Starts a text from an empty state; `tokens` must outlive its last next().
  void begin(std::span<const int32_t> tokens);
  /// Logits [n, V] after each of the next n tokens, on the host; empty at the end. Slices depend only on V
  /// and the length. Errors: a token outside the vocabulary.
  std::span<const float> next();

 private:
  std::shared_ptr<const Model> model_;
  Arena arena_;
  State state_;
  std::span<const int32_t> tokens_;
  std::vector<float> logits_;
};

}  // namespace rwkvx
