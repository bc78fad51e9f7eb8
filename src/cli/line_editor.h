#pragma once

#include <optional>
#include <string>

namespace rwkvx::cli {

/// Lines from a person, with editing and history (libedit), or from a pipe as they are.
class LineEditor {
 public:
  LineEditor();
  /// The next line without its line break; nothing at the end of the input. A backslash at the end of a line
  /// joins the next one to it.
  std::optional<std::string> read(const char* prompt);
  bool interactive() const { return interactive_; }

 private:
  std::optional<std::string> read_line(const char* prompt);
  bool interactive_;
};

}  // namespace rwkvx::cli
