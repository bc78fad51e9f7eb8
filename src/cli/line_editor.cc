#include "cli/line_editor.h"

#include <editline/readline.h>
#include <langinfo.h>
#include <unistd.h>

#include <clocale>
#include <cstdlib>
#include <cstring>
#include <iostream>

namespace rwkvx::cli {

namespace {

/// libedit drops every character that the locale lacks; the one programs start in has only ASCII.
void use_utf8_locale() {
  std::setlocale(LC_CTYPE, "");
  if (std::strcmp(::nl_langinfo(CODESET), "UTF-8") != 0) std::setlocale(LC_CTYPE, "C.UTF-8");
}

}  // namespace

LineEditor::LineEditor() : interactive_(::isatty(STDIN_FILENO) != 0 && ::isatty(STDOUT_FILENO) != 0) {
  if (interactive_) {
    use_utf8_locale();
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
