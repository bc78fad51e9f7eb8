#include "evaluation/divergence.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkvx {
namespace {

/// log Σ exp(logits)
double log_sum(std::span<const float> logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - most);
  return most + std::log(sum);
}

}  // namespace

DivergenceSums& DivergenceSums::operator+=(const DivergenceSums& other) {
  tokens += other.tokens;
  source_nats += other.source_nats;
  nats += other.nats;
  kl += other.kl;
  same_top += other.same_top;
  return *this;
}

DivergenceSums divergence(std::span<const float> source, std::span<const float> other, int32_t token) {
  const double source_sum = log_sum(source), other_sum = log_sum(other);
  const auto at = static_cast<size_t>(token);
  DivergenceSums out;
  out.tokens = 1;
  out.source_nats = source_sum - static_cast<double>(source[at]);
  out.nats = other_sum - static_cast<double>(other[at]);
  for (size_t i = 0; i < source.size(); ++i) {
    const double log_p = static_cast<double>(source[i]) - source_sum;
    out.kl += std::exp(log_p) * (log_p - (static_cast<double>(other[i]) - other_sum));
  }
  const auto top = [](std::span<const float> x) { return std::max_element(x.begin(), x.end()) - x.begin(); };
  out.same_top = top(source) == top(other) ? 1 : 0;
  return out;
}

Divergence::Divergence(std::shared_ptr<const Model> source, std::shared_ptr<const Model> other)
    : vocab_(source->config().vocab), source_(source), other_(other) {
  if (other->config().vocab != vocab_) {
    fail("{}: a vocabulary of {}, but {} has {}; predictions cannot be compared",
         other->checkpoint().path().string(), other->config().vocab, source->checkpoint().path().string(),
         vocab_);
  }
}

DivergenceSums Divergence::of(std::span<const int32_t> tokens, const Progress& progress) {
  DivergenceSums sums;
  if (tokens.size() < 2) return sums;
  if (const int32_t last = tokens.back(); last < 0 || last >= vocab_) {  // the only one that is not fed
    fail("token {} at position {} is outside the model's vocabulary of {}", last, tokens.size() - 1, vocab_);
  }
  const size_t total = tokens.size() - 1;
  source_.begin(tokens.first(total));
  other_.begin(tokens.first(total));
  const auto V = static_cast<size_t>(vocab_);
  if (progress) progress(0, total);
  for (auto p = source_.next(); !p.empty(); p = source_.next()) {
    const auto q = other_.next();
    RWKVX_ASSERT(q.size() == p.size());
    for (size_t row = 0; row < p.size(); row += V) {
      const auto done = static_cast<size_t>(sums.tokens);
      sums += divergence(p.subspan(row, V), q.subspan(row, V), tokens[done + 1]);
    }
    if (!std::isfinite(sums.kl) || !std::isfinite(sums.nats)) {
      fail("logits among the first {} tokens are not finite; are all values of both checkpoints?",
           sums.tokens);
    }
    if (progress) progress(static_cast<uint64_t>(sums.tokens), total);
  }
  return sums;
}

}  // namespace rwkvx
