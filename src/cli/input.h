#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

namespace rwkvx::cli {

/// Text that comes from an argument, a file ("-" for stdin) or else stdin. Any bytes.
struct TextInput {
  std::optional<std::string> text;
  std::string file;

  bool given() const { return text.has_value() || !file.empty(); }
  /// Errors: both given; neither, and stdin is a terminal (`flags` names what to pass); a file that cannot be
  /// read.
  std::string read(const std::string& flags) const;
};

}  // namespace rwkvx::cli
