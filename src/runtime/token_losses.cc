#include "runtime/token_losses.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkvx {
double cross_entropy(std::span<const float> logits, int32_t target) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - max));
  return std::log(sum) + static_cast<double>(max) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

TokenLosses::TokenLosses(std::shared_ptr<const Model> model)
    : vocab_(model->config().vocab), stream_(std::move(model)) {}

std::vector<float> TokenLosses::of(std::span<const int32_t> tokens, const Progress& progress) {
  std::vector<float> losses;
  if (tokens.size() < 2) return losses;
  if (const int32_t last = tokens.back(); last < 0 || last >= vocab_) {  // the only one that is not fed
    fail("token {} at position {} is outside the model's vocabulary of {}", last, tokens.size() - 1, vocab_);
  }
  const size_t total = tokens.size() - 1;  // the last token is only predicted
  losses.reserve(total);
  stream_.begin(tokens.first(total));
  if (progress) progress(0, total);
  const auto V = static_cast<size_t>(vocab_);
  for (auto logits = stream_.next(); !logits.empty(); logits = stream_.next()) {
    for (; !logits.empty(); logits = logits.subspan(V)) {
      const size_t i = losses.size() + 1;
      const double loss = cross_entropy(logits.first(V), tokens[i]);
      if (!std::isfinite(loss)) {
        fail("the logits after {} tokens are not finite; are all values of the checkpoint?", i);
      }
      losses.push_back(static_cast<float>(loss));
    }
    if (progress) progress(losses.size(), total);
  }
  return losses;
}

}  // namespace rwkvx
