#include "training/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace rwkvx {

std::optional<Decay> decay_named(std::string_view name) {
  if (name == "cosine") return Decay::cosine;
  if (name == "linear") return Decay::linear;
  if (name == "constant") return Decay::constant;
  return std::nullopt;
}

double learning_rate(const Schedule& s, int64_t step) {
  const auto number = [](int64_t n) { return static_cast<double>(n); };
  // The last update, steps - 1, has the final rate.
  const double length = number(std::max<int64_t>(1, s.steps - 1 - s.warmup));
  const double progress = std::clamp(number(step - s.warmup) / length, 0.0, 1.0);
  double rate = s.peak;
  if (s.decay == Decay::cosine)
    rate = s.final + (s.peak - s.final) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
  if (s.decay == Decay::linear) rate = s.peak + (s.final - s.peak) * progress;
  return step < s.warmup ? rate * (0.01 + 0.99 * number(step) / number(s.warmup)) : rate;
}

}  // namespace rwkvx
