#include "runtime/logits_stream.h"

#include <algorithm>

namespace rwkvx {
namespace {

constexpr int64_t kMostRows = 2048;
constexpr int64_t kLogitsBytes = int64_t{64} << 20;

}  // namespace

LogitsStream::LogitsStream(std::shared_ptr<const Model> model)
    : model_(std::move(model)), arena_(model_->ops().allocator()), state_(model_->new_state()) {
  RWKVX_ASSERT(model_->ops().real() == DType::f32);
}

void LogitsStream::begin(std::span<const int32_t> tokens) {
  state_ = model_->new_state();
  tokens_ = tokens;
}

std::span<const float> LogitsStream::next() {
  const int64_t V = model_->config().vocab;
  const auto most = static_cast<size_t>(std::clamp<int64_t>(kLogitsBytes / (4 * V), 1, kMostRows));
  const size_t n = std::min(most, tokens_.size());
  if (n == 0) return {};
  const Arena::Scope scope(arena_);
  const View logits = arena_.take(DType::f32, {static_cast<int64_t>(n), V});
  const SequenceInput input{tokens_.first(n), &state_};
  model_->forward(std::span(&input, 1), LogitsOf::all, logits, arena_);
  logits_.resize(n * static_cast<size_t>(V));
  model_->ops().download(logits.data(), std::as_writable_bytes(std::span(logits_)));
  tokens_ = tokens_.subspan(n);
  return logits_;
}

}  // namespace rwkvx
