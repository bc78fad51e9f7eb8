#pragma once

#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "runtime/logits_stream.h"

namespace rwkvx {

/// How well a model predicts each token of a text, in one pass of bounded work space.
class TokenLosses {
 public:
  explicit TokenLosses(std::shared_ptr<const Model> model);

  /// -log p(tokens[i] | tokens[0 .. i-1]) in nats for i from 1 on: one fewer than there are tokens.
  /// `progress` counts tokens and may throw to stop. Errors: a token outside the vocabulary; logits that are
  /// not finite.
  std::vector<float> of(std::span<const int32_t> tokens, const Progress& progress = {});

 private:
  int64_t vocab_;
  LogitsStream stream_;
};

/// log Σ exp(logits) - logits[target]. NaN where a logit is.
double cross_entropy(std::span<const float> logits, int32_t target);

}  // namespace rwkvx
