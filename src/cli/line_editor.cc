#include "cli/line_editor.h"

#include <editline/readline.h>
#include <unistd.h>

#include <cstdlib>
#include <iostream>

namespace rwkvx::cli {

LineEditor::LineEditor() : interactive_(::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) {
  if (interactive_) {
    ::rl_initialize();
    ::using_history();
  }
}

std::optional<std::string> LineEditor::read_line(const char* prompt) {
  std::string line;
  if (!interactive_) {
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
  char* raw = ::readline(prompt);
  if (raw == nullptr) return std::nullopt;
  line = raw;
  std::free(raw);
  if (!line.empty()) ::add_history(line.c_str());
  return line;
}

std::optional<std::string> LineEditor::read(const char* prompt) {
  std::optional<std::string> line = read_line(prompt);
  while (line && line->ends_with('\\')) {
    line->back() = '\n';
    const std::optional<std::string> more = read_line("... ");
    if (!more) break;
    *line += *more;
  }
  return line;
}

}  // namespace rwkvx::cli
