#include "cli/options.h"
namespace rwkvx::cli {
void add_chat(CLI::App&) {}
}  // namespace rwkvx::cli
