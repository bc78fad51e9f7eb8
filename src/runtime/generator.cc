#include "runtime/generator.h"

#include <chrono>

#include "runtime/text_stream.h"

namespace rwkvx {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

std::string_view name(StopReason reason) {
  switch (reason) {
    case StopReason::max_tokens:
      return "max_tokens";
    case StopReason::end_of_document:
      return "end_of_document";
    case StopReason::stop_string:
      return "stop_string";
    case StopReason::interrupted:
      return "interrupted";
  }
  return "?";
}

Generation generate(Session& session, const Tokenizer& tokenizer, Sampler& sampler,
                    const GenerationOptions& options, const std::function<void(std::string_view)>& show,
                    const std::atomic<bool>* interrupted, const Progress& progress) {
  Generation result;
  TextStream stream(options.stops);
  Clock::time_point start = Clock::now();
  if (options.max_tokens == 0) {
    session.settle(progress);
    result.first_seconds = seconds_since(start);
    return result;
  }
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    const std::span<const float> logits = session.logits(i == 0 ? progress : Progress());
    if (i == 0) {
      result.first_seconds = seconds_since(start);
      start = Clock::now();
    }
    if (interrupted != nullptr && *interrupted) {
      result.reason = StopReason::interrupted;
      break;
    }
    const TokenId id = sampler.sample(logits);
    sampler.accept(id);
    if (id == tokenizer.end_of_document() && !options.ignore_end) {
      result.reason = StopReason::end_of_document;
      break;
    }
    session.append(id);
    result.tokens.push_back(id);
    if (id >= tokenizer.vocab_size()) continue;  // a row of the embedding that no text has
    const TextStream::Piece piece = stream.feed(tokenizer.token_bytes(id));
    if (!piece.text.empty()) show(piece.text);
    if (piece.stopped) {
      result.reason = StopReason::stop_string;
      break;
    }
  }
  if (!stream.stopped()) {
    const std::string rest = stream.finish();
    if (!rest.empty()) show(rest);
  }
  result.rest_seconds = seconds_since(start);
  return result;
}

}  // namespace rwkvx
