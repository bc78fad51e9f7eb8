#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace rwkvx {

enum class Decay { cosine, linear, constant };
std::optional<Decay> decay_named(std::string_view name);

/// The learning rate over a run.
struct Schedule {
  Decay decay = Decay::cosine;
  double peak = 6e-4, final = 6e-5;  ///< final: reached at the last step; not used when constant
  int64_t warmup = 10;               ///< steps
  int64_t steps = 1000;
};

/// Of the update number `step`, from 0. During warm-up the rate rises from 1% of what it would be, as in
/// RWKV-LM (train_temp/src/trainer.py); the decay begins behind it.
double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace rwkvx
