#pragma once

#include <fmt/format.h>

#include <string>
#include <utility>

namespace rwkvx {

enum class LogLevel { debug, info, warning, error, off };

/// Diagnostics for people, on stderr. The library logs; only cli/ prints results.
void log_message(LogLevel level, const std::string& message);
void set_log_level(LogLevel level);

template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::info, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  log_message(LogLevel::warning, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace rwkvx
