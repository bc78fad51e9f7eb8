#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "model/model.h"

namespace rwkvx {

/// How well a model predicts each token of a text, in one pass of bounded work space: the text is streamed
/// through a state, and logits exist for a slice of it at a time.
class TokenLosses {
 public:
  explicit TokenLosses(std::shared_ptr<const Model> model);

  /// -log p(tokens[i] | tokens[0 .. i-1]) in nats for i from 1 on: one fewer than there are tokens.
  /// `progress` counts tokens and may throw to stop. Errors: a token outside the vocabulary; logits that are
  /// not finite.
  std::vector<float> of(std::span<const int32_t> tokens, const Progress& progress = {});

 private:
  std::shared_ptr<const Model> model_;
  Arena arena_;
  std::vector<float> logits_;  // of a slice, on the host
};

/// log Σ exp(logits) - logits[target]. NaN where a logit is.
double cross_entropy(std::span<const float> logits, int32_t target);

}  // namespace rwkvx
