#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "base/progress.h"
#include "evaluation/needle_plan.h"
#include "model/model.h"

namespace rwkvx {

/// The share of the answers that a continuation gives, 0 to 1. One answer is matched exactly, from the
/// continuation's first letter or digit on. Of several, those count that occur in it, as in RULER.
double score_answer(std::string_view continuation, std::span<const std::string> answers);

struct NeedleResult {
  size_t sample = 0;      ///< of the plan
  std::string predicted;  ///< the greedy continuation, any bytes
  double score = 0;
};

/// Reads the prompts of these samples and continues each greedily, as far as its answers reach. What prompts
/// share is read once: one session walks along each trunk and is forked where a needle goes in, another
/// walks on from there and is forked for each question. `done` is called as soon as a sample is finished;
/// `progress` counts the tokens of needle_cost() and may throw to stop.
void run_needles(const std::shared_ptr<const Model>& model, const Tokenizer& tokenizer,
                 const NeedlePlan& plan, std::span<const size_t> samples,
                 const std::function<void(const NeedleResult&)>& done, const Progress& progress = {});

}  // namespace rwkvx
