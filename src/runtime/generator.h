#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runtime/sampler.h"
#include "runtime/session.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx {

struct GenerationOptions {
  int64_t max_tokens = 256;        ///< 0: only the pending prompt is read
  std::vector<std::string> stops;  ///< text ends before the first of them
  bool ignore_end = false;         ///< go on after the end-of-document token
};

enum class StopReason { max_tokens, end_of_document, stop_string, interrupted };
std::string_view name(StopReason reason);  ///< "max_tokens", …

struct Generation {
  StopReason reason = StopReason::max_tokens;
  std::vector<TokenId> tokens;  ///< appended to the session, in order; the last one is pending
  double first_seconds = 0;     ///< to the first token: the prompt's time
  double rest_seconds = 0;      ///< for all the others
};

/// Samples tokens and appends them to the session until something stops it. `show` gets text as soon as it is
/// certain: whole UTF-8 characters, never a part of a stop string. `interrupted` (may be null) is looked at
/// between tokens; `progress` is for the prompt that is pending. The end-of-document token is not appended.
/// Errors: those of Session::logits and Sampler::sample.
Generation generate(Session& session, const Tokenizer& tokenizer, Sampler& sampler,
                    const GenerationOptions& options, const std::function<void(std::string_view)>& show,
                    const std::atomic<bool>* interrupted = nullptr, const Progress& progress = {});

}  // namespace rwkvx
