#include "cli/options.h"
namespace rwkvx::cli {
void add_generate(CLI::App&) {}
}  // namespace rwkvx::cli
