#include "cli/input.h"

#include <unistd.h>

#include "base/error.h"
#include "base/file.h"

namespace rwkvx::cli {

std::string TextInput::read(const std::string& flags) const {
  if (text && !file.empty()) throw UsageError("give either a text or a file, not both (" + flags + ")");
  if (text) return *text;
  if (!file.empty() && file != "-") return read_file(file);
  if (file.empty() && ::isatty(STDIN_FILENO) != 0)
    throw UsageError("no text given; pass " + flags + " or pipe it in");
  return read_file("/dev/stdin");
}

}  // namespace rwkvx::cli
