#include "ops/cpu/prefetch.h"

namespace rwkvx::cpu {

#if defined(__x86_64__) || defined(__i386__)
namespace {

bool is_intel() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
}

}  // namespace
const bool reads_pages_together = is_intel();
#else
const bool reads_pages_together = false;
#endif

}  // namespace rwkvx::cpu
