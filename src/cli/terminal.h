#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include "base/memory.h"
#include "base/progress.h"

namespace rwkvx::cli {

/// Results go to stdout, all at once or piece by piece. Errors: stdout cannot be written to (a full disk).
void print(std::string_view text);

/// Set by the first Ctrl-C after watch_interrupt(); a second one ends the program.
std::atomic<bool>& interrupted();
void watch_interrupt();
/// SIGTERM sets interrupted() too.
void watch_termination();

/// Thrown by progress callbacks to stop long work after Ctrl-C; not an error.
struct Interrupted {};

/// A bar on stderr for work that takes longer than a second; plain lines now and then when stderr is no
/// terminal.
class ProgressBar {
 public:
  /// "prefill", "tokens"
  ProgressBar(std::string what, std::string unit) : what_(std::move(what)), unit_(std::move(unit)) {}
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(uint64_t done, uint64_t total);
  void clear();
  /// Updates the bar and throws Interrupted after Ctrl-C.
  Progress callback();

 private:
  using Clock = std::chrono::steady_clock;
  std::string what_, unit_;
  Clock::time_point start_ = Clock::now(), shown_ = Clock::now();
  bool drawn_ = false;
};

/// "3m20s"
std::string human_time(double seconds);
/// "1.5 GB"
std::string human_bytes(uint64_t bytes);

}  // namespace rwkvx::cli
