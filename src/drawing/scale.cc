#include "drawing/scale.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace rwkvx {
namespace {

/// The smallest of 1, 2, 5 · 10^n that is not below `raw`.
double round_step(double raw) {
  const double power = std::pow(10, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (raw <= factor * power * (1 + 1e-9)) return factor * power;
  }
  return 10 * power;
}

double linear_step(double low, double high, int most) { return round_step((high - low) / std::max(most, 1)); }

}  // namespace

std::string short_number(double value, bool binary) {
  const double thousand = binary ? 1024 : 1000;
  const double size = std::abs(value);
  const char* unit = "";
  if (size >= thousand * thousand * thousand) {
    value /= thousand * thousand * thousand;
    unit = "G";
  } else if (size >= thousand * thousand) {
    value /= thousand * thousand;
    unit = "M";
  } else if (size >= thousand) {
    value /= thousand;
    unit = "K";
  }
  return fmt::format("{:.4g}{}", value == 0 ? 0 : value, unit);
}

Scale::Scale(ScaleKind kind, double low, double high, bool exact) : kind_(kind), low_(low), high_(high) {
  if (!std::isfinite(low_) || !std::isfinite(high_)) low_ = high_ = kind_ == ScaleKind::linear ? 0 : 1;
  if (low_ > high_) std::swap(low_, high_);
  if (kind_ == ScaleKind::linear) {
    if (low_ == high_) {
      const double around = low_ == 0 ? 1 : std::abs(low_) / 2;
      low_ -= around;
      high_ += around;
    }
    if (exact) return;
    const double step = linear_step(low_, high_, 6);
    low_ = std::floor(low_ / step + 1e-9) * step;
    high_ = std::ceil(high_ / step - 1e-9) * step;
    return;
  }
  if (high_ <= 0) high_ = 1;
  if (low_ <= 0) low_ = high_ / 1000;
  const double base = kind_ == ScaleKind::log2 ? 2 : 10;
  if (low_ == high_) {
    low_ /= base;
    high_ *= base;
  }
  if (exact) return;
  if (kind_ == ScaleKind::log2) {
    low_ = std::exp2(std::floor(std::log2(low_) + 1e-9));
    high_ = std::exp2(std::ceil(std::log2(high_) - 1e-9));
    return;
  }
  // To 1, 2 or 5 times a power of ten: whole decades would leave half the picture empty.
  const double below = std::pow(10, std::floor(std::log10(low_) + 1e-9));
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * below <= low_ * (1 + 1e-9)) {
      low_ = factor * below;
      break;
    }
  }
  high_ = round_step(high_);
}

double Scale::place(double value) const {
  if (kind_ == ScaleKind::linear) return (value - low_) / (high_ - low_);
  if (!(value > 0)) return std::nan("");
  return std::log(value / low_) / std::log(high_ / low_);
}

std::vector<Scale::Tick> Scale::ticks(int most) const {
  std::vector<Tick> out;
  if (kind_ == ScaleKind::linear) {
    const double step = linear_step(low_, high_, most);
    const int decimals = std::max(0, static_cast<int>(std::ceil(-std::log10(step) - 1e-9)));
    for (double i = std::ceil(low_ / step - 1e-9); i * step <= high_ + 1e-9 * step; ++i) {
      const double value = i * step;
      const bool large = std::max(std::abs(low_), std::abs(high_)) >= 10000;
      out.push_back(
          {value, large ? short_number(value) : fmt::format("{:.{}f}", value == 0 ? 0 : value, decimals)});
    }
    return out;
  }
  const double slack = 1e-9;
  if (kind_ == ScaleKind::log2) {
    const double first = std::ceil(std::log2(low_) - slack), last = std::floor(std::log2(high_) + slack);
    const double stride = std::max(1.0, std::ceil((last - first + 1) / std::max(most, 1)));
    for (double e = first; e <= last; e += stride)
      out.push_back({std::exp2(e), short_number(std::exp2(e), true)});
    return out;
  }
  const double first = std::floor(std::log10(low_)), last = std::ceil(std::log10(high_));
  const bool fine = (last - first) * 3 <= most;
  const double stride = std::max(1.0, std::ceil((last - first + 1) / std::max(most, 1)));
  for (double e = first; e <= last; e += stride) {
    for (const double factor : {1.0, 2.0, 5.0}) {
      const double value = factor * std::pow(10, e);
      if (value < low_ * (1 - slack) || value > high_ * (1 + slack) || (factor > 1 && !fine)) continue;
      out.push_back({value, short_number(value)});
    }
  }
  return out;
}

}  // namespace rwkvx
