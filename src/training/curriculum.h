#pragma once

#include <string>
#include <vector>

#include "training/mixture/mixture.h"
#include "training/train_config.h"

namespace rwkvx {

/// Steps from `begin` on, until the next phase begins.
struct Phase {
  int64_t begin = 0;
  int64_t context = 0, batch = 0;
  double lr = 0;        ///< peak learning rate
  MixturePhase from{};  ///< what it was made from
};

/// Of "256:120,512:350,1024": CONTEXT:STEPS each, the last without steps. Errors: UsageError.
std::vector<MixturePhase> parse_curriculum(const std::string& text);

/// The phases of a run, one at least. A phase without a batch of its own has as many sequences as keep the
/// tokens of a step: --batch x --context over its context. Errors: a context that is longer than that.
std::vector<Phase> phases_of(const TrainConfig& config, const std::vector<MixturePhase>& given);

/// The index of the phase that step `step`, from 0, belongs to.
size_t phase_at(const std::vector<Phase>& phases, int64_t step);

/// Tokens of one batch of each of the steps before `step`.
int64_t tokens_before(const std::vector<Phase>& phases, int64_t step);

}  // namespace rwkvx
