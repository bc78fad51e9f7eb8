#pragma once

#include <string>
#include <vector>

namespace rwkvx {

enum class ScaleKind {
  linear,
  log10,  ///< ticks at 1, 10, 100, or also 2 and 5 where decades are few
  log2,   ///< ticks at powers of two, labelled 512, 1K, 2K, … 1M: lengths in tokens
};

/// Where a value lies between the ends of an axis, and which values get a tick.
class Scale {
 public:
  /// `low` and `high` are widened to round values unless `exact`. A range that cannot be drawn (empty, not
  /// finite, not positive on a logarithmic axis) becomes one that can.
  Scale(ScaleKind kind, double low, double high, bool exact = false);

  double low() const { return low_; }
  double high() const { return high_; }
  /// 0 at low(), 1 at high(); beyond them outside. NaN where a value has no place: zero and below on a
  /// logarithmic axis.
  double place(double value) const;

  struct Tick {
    double value;
    std::string label;
  };
  /// Rising, at most about `most` of them.
  std::vector<Tick> ticks(int most) const;

 private:
  ScaleKind kind_;
  double low_, high_;
};

/// "950", "1.5K", "64K", "1M": thousands, or 1024s where `binary`.
std::string short_number(double value, bool binary = false);

}  // namespace rwkvx
