#include "runtime/token_losses.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr int64_t kMostRows = 2048;
constexpr int64_t kLogitsBytes = int64_t{64} << 20;

}  // namespace

double cross_entropy(std::span<const float> logits, int32_t target) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += static_cast<double>(std::exp(logit - max));
  return std::log(sum) + static_cast<double>(max) - static_cast<double>(logits[static_cast<size_t>(target)]);
}

TokenLosses::TokenLosses(std::shared_ptr<const Model> model)
    : model_(std::move(model)), arena_(model_->ops().allocator()) {}

std::vector<float> TokenLosses::of(std::span<const int32_t> tokens, const Progress& progress) {
  Ops& ops = model_->ops();
  RWKVX_ASSERT(ops.real() == DType::f32);
  const int64_t V = model_->config().vocab;
  const size_t slice = static_cast<size_t>(std::clamp<int64_t>(kLogitsBytes / (4 * V), 1, kMostRows));
  std::vector<float> losses;
  if (tokens.size() < 2) return losses;
  if (const int32_t last = tokens.back(); last < 0 || last >= V) {  // the only one that is not fed
    fail("token {} at position {} is outside the model's vocabulary of {}", last, tokens.size() - 1, V);
  }
  losses.reserve(tokens.size() - 1);
  State state = model_->new_state();
  const size_t total = tokens.size() - 1;  // the last token is only predicted
  for (size_t done = 0; done < total;) {
    if (progress) progress(done, total);
    const size_t n = std::min(slice, total - done);
    {
      const Arena::Scope scope(arena_);
      const View logits = arena_.take(DType::f32, {static_cast<int64_t>(n), V});
      const SequenceInput input{tokens.subspan(done, n), &state};
      model_->forward(std::span(&input, 1), LogitsOf::all, logits, arena_);
      logits_.resize(n * static_cast<size_t>(V));
      ops.download(logits.data(), std::as_writable_bytes(std::span(logits_)));
    }
    for (size_t i = 0; i < n; ++i) {
      const auto row = std::span(logits_).subspan(i * static_cast<size_t>(V), static_cast<size_t>(V));
      const double loss = cross_entropy(row, tokens[done + i + 1]);
      if (!std::isfinite(loss)) {
        fail("the logits after {} tokens are not finite; are all values of the checkpoint?", done + i + 1);
      }
      losses.push_back(static_cast<float>(loss));
    }
    done += n;
  }
  if (progress) progress(total, total);
  return losses;
}

}  // namespace rwkvx
