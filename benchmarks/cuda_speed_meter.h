#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/ops.h"

/// Times of what a backend does, printed as JSON lines.
namespace rwkvx {

/// The fields of one line.
class Fields {
 public:
  Fields& text(std::string_view name, std::string_view value) {
    std::string escaped;
    for (const char c : value) {
      if (c == '"' || c == '\\') escaped += '\\';
      escaped += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
    return add(name, fmt::format("\"{}\"", escaped));
  }
  Fields& number(std::string_view name, int64_t value) { return add(name, fmt::format("{}", value)); }
  Fields& number(std::string_view name, double value) {
    return add(name, std::isfinite(value) ? fmt::format("{:.5g}", value) : "null");
  }
  Fields& truth(std::string_view name, bool value) { return add(name, value ? "true" : "false"); }
  void print() const {
    fmt::print("{{{}}}\n", fields_);
    std::fflush(stdout);
  }

 private:
  Fields& add(std::string_view name, const std::string& value) {
    fields_ += fmt::format("{}\"{}\": {}", fields_.empty() ? "" : ", ", name, value);
    return *this;
  }
  std::string fields_;
};

class Meter {
 public:
  using Work = std::function<void()>;
  /// A name, and how much of it one call does.
  using Rates = std::vector<std::pair<std::string_view, double>>;

  Meter(Ops& ops, double budget) : ops_(ops), budget_(budget), start_(std::chrono::steady_clock::now()) {}

  double bandwidth = 0;                    ///< of copies in GB/s, reads and writes; 0: not measured
  double cache_bytes = 3e8;                ///< far more than the processor's cache holds
  double last_seconds = 0, last_rate = 0;  ///< of the last measurement: a call, its first rate

  double elapsed() const { return since(start_); }
  double left() const { return budget_ - elapsed(); }
  /// Says so when there is no time for it.
  bool fits(const Fields& fields, double seconds) const {
    if (seconds <= left()) return true;
    Fields(fields)
        .text("skipped", fmt::format("needs about {:.1f} s", seconds))
        .number("left", left())
        .print();
    return false;
  }

  /// One call took so many seconds. `single`: a call is so long that the first is the measurement.
  double seconds_of(const Work& work, bool single = false) {
    if (!single) timed(work, 1);
    const double first = timed(work, 1);
    calls_ = 1;
    if (first > 1 || single) return first;
    const int times = static_cast<int>(std::clamp(0.005 / std::max(first, 1e-7), 1.0, 200.0));
    const int repeats = static_cast<int>(std::clamp(0.3 / std::max(first * times, 1e-7), 3.0, 20.0));
    std::vector<double> all;
    for (int i = 0; i < repeats; ++i) all.push_back(timed(work, times) / times);
    std::sort(all.begin(), all.end());
    calls_ = times * repeats;
    return all[all.size() / 2];
  }

  void measure(Fields fields, const Work& work, const Rates& rates, bool single = false) {
    if (!fits(fields, 0.2)) return;
    try {
      report(fields, seconds_of(work, single), rates);
    } catch (const std::exception& e) {
      last_seconds = last_rate = 0;
      fields.text("error", e.what()).number("at", elapsed()).print();
    }
  }
  void report(Fields& fields, double seconds, const Rates& rates) {
    last_seconds = seconds;
    last_rate = rates.empty() ? 0 : rates.front().second / seconds;
    fields.number("milliseconds", 1e3 * seconds).number("calls", int64_t{calls_});
    for (const auto& [name, amount] : rates) fields.number(name, amount / seconds);
    fields.number("at", elapsed()).print();
  }
  /// Goes on after an error, which is reported under a name.
  void guarded(std::string_view name, const Work& work) const {
    try {
      work();
    } catch (const std::exception& e) {
      Fields().text("what", name).text("error", e.what()).number("at", elapsed()).print();
    }
  }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static double since(Time start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  double timed(const Work& work, int times) {
    ops_.synchronize();
    const Time start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) work();
    ops_.synchronize();
    return since(start);
  }

  Ops& ops_;
  double budget_;
  Time start_;
  int calls_ = 1;
};

}  // namespace rwkvx
