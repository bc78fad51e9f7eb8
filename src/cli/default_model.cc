#include "cli/default_model.h"

#include <cstdlib>
#include <system_error>

#include "base/error.h"
#include "base/file.h"

namespace rwkvx::cli {
namespace {

namespace fs = std::filesystem;

/// bin/ of an installation, whatever name or link the program was called by. Empty where the system cannot
/// say.
Path folder_of_program() {
  std::error_code error;
  return fs::read_symlink("/proc/self/exe", error).parent_path();
}

}  // namespace

std::string default_model() {
  std::error_code error;
  if (const char* named = std::getenv("RWKVX_MODEL"); named != nullptr && *named != '\0') {
    if (!fs::is_regular_file(named, error))
      fail("{}: there is no such file; the environment variable RWKVX_MODEL names it", printable(named));
    return named;
  }
  const Path installed =
      (folder_of_program() / RWKVX_MODEL_FROM_PROGRAM / RWKVX_MODEL_NAME).lexically_normal();
  const Path source = Path(RWKVX_MODEL_SOURCE) / RWKVX_MODEL_NAME;
  for (const Path& path : {installed, source}) {
    if (fs::is_regular_file(path, error)) return path.string();
  }
  fail(
      "no MODEL is given, and the one that comes with rwkvx is neither {} nor {}; name a model file or set "
      "RWKVX_MODEL",
      installed.string(), source.string());
}

}  // namespace rwkvx::cli
