#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <cstdio>
#include <cstdlib>

#include "base/assert.h"

namespace rwkvx {
namespace {

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::debug:
      return spdlog::level::debug;
    case LogLevel::info:
      return spdlog::level::info;
    case LogLevel::warning:
      return spdlog::level::warn;
    case LogLevel::error:
      return spdlog::level::err;
    case LogLevel::off:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  static const auto instance = [] {
    auto made =
        std::make_shared<spdlog::logger>("rwkvx", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("rwkvx: %^%l%$: %v");
    return made;
  }();
  return *instance;
}

}  // namespace

void log_message(LogLevel level, const std::string& message) {
  logger().log(to_spdlog(level), "{}", message);
}

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "rwkvx: internal error at %s:%d: %s does not hold\n", file, line, condition);
  std::abort();
}

}  // namespace rwkvx
