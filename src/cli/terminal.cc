#include "cli/terminal.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace rwkvx::cli {
namespace {

void on_interrupt(int) {
  if (interrupted().exchange(true)) {
    std::signal(SIGINT, SIG_DFL);
    std::raise(SIGINT);
  }
}

/// Columns of the terminal that stderr is.
size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    fail("cannot write to stdout: {}", std::strerror(errno));
  }
}

std::atomic<bool>& interrupted() {
  static std::atomic<bool> flag{false};
  return flag;
}

void watch_interrupt() {
  interrupted();  // made before a signal can come
  std::signal(SIGINT, on_interrupt);
}

void watch_termination() { std::signal(SIGTERM, on_interrupt); }

void ProgressBar::update(uint64_t done, uint64_t total) {
  constexpr auto kSilent = std::chrono::seconds(1);
  const Clock::time_point now = Clock::now();
  const bool terminal = ::isatty(STDERR_FILENO) != 0;
  const auto interval = terminal ? std::chrono::milliseconds(200) : std::chrono::milliseconds(15000);
  if (now - start_ < kSilent || now - shown_ < interval || total == 0) return;
  shown_ = now;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - start_).count();
  const double rate = static_cast<double>(done) / seconds;
  const double fraction = static_cast<double>(done) / static_cast<double>(total);
  const bool bytes = unit_ == "bytes";
  const std::string amount = bytes ? fmt::format("{} of {}", human_bytes(done), human_bytes(total))
                                   : fmt::format("{} of {} {}", done, total, unit_);
  const std::string speed = bytes ? fmt::format("{}/s", human_bytes(static_cast<uint64_t>(rate)))
                                  : fmt::format("{:.0f} {}/s", rate, unit_);
  const std::string left = rate > 0 ? human_time(static_cast<double>(total - done) / rate) : "?";
  std::string numbers = fmt::format("{:3.0f}%, {}, {}, {} left", 100 * fraction, amount, speed, left);
  if (terminal) {
    // A line that wraps could not be taken back: the bar gets what is left of it, or nothing.
    const size_t width = terminal_width() - 1, text = what_.size() + numbers.size() + 2;
    const size_t cells = text + 4 <= width ? std::min<size_t>(24, width - text) : 0;
    std::string bar;
    for (size_t i = 0; i < cells; ++i)
      bar += static_cast<double>(i + 1) <= fraction * static_cast<double>(cells) ? "█" : "░";
    if (cells == 0 && text > width) numbers.resize(width > what_.size() + 2 ? width - what_.size() - 2 : 0);
    fmt::print(stderr, "\r\033[K{} {}{}{}", what_, bar, cells > 0 ? " " : "", numbers);
  } else {
    fmt::print(stderr, "{}: {}\n", what_, numbers);
  }
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (drawn_ && ::isatty(STDERR_FILENO) != 0) {
    fmt::print(stderr, "\r\033[K");
    std::fflush(stderr);
  }
  drawn_ = false;
}

Progress ProgressBar::callback() {
  return [this](uint64_t done, uint64_t total) {
    update(done, total);
    if (interrupted() && done < total) throw Interrupted();
  };
}

std::string human_time(double seconds) {
  const auto s = static_cast<int64_t>(seconds + 0.5);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

std::string human_bytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes)
                   : fmt::format("{:.{}f} {}", value, value < 10 ? 2 : 1, kUnits[unit]);
}

}  // namespace rwkvx::cli
