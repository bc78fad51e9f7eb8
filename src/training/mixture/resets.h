#pragma once

#include <optional>
#include <span>

#include "training/mixture/fields.h"
#include "training/mixture/sample.h"

namespace rwkvx {

/// Where WKV states are forgotten, so that only attention knows what came before.
struct ResetRule {
  double share = 0;  ///< of the sequences that have resets …
  std::optional<IntRange> every,
      places;            ///< … after so many tokens each, or at so many places; both: one of them
  double questions = 0;  ///< share of the sequences that have one before each question
};

/// Reads {"share": 0.8, "every": [32, 400], "places": [1, 3], "questions": 0.2}.
ResetRule read_reset_rule(const Fields::Json& json, const std::string& where);

/// Sets resets[i] to 1 where the state forgets what came before token i, of a sequence that is made.
void draw_resets(const ResetRule& rule, const Sample& sample, Random& random, std::span<uint8_t> resets);

}  // namespace rwkvx
