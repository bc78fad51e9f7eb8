#pragma once

#include <memory>

#include "ops/ops.h"

namespace rwkvx {

/// oneDNN for matrix products of many rows, Highway kernels for the rest.
/// threads: 0 for one for each core that the process may use. Errors: f64 precision.
std::unique_ptr<Ops> make_cpu_ops(Precision precision, int threads);

}  // namespace rwkvx
