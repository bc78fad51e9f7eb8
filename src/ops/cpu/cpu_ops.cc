#include "ops/cpu/cpu_ops.h"

#include "base/error.h"

namespace rwkvx {

std::unique_ptr<Ops> make_cpu_ops(Precision, int) { fail("the cpu backend is being built"); }

}  // namespace rwkvx
