#pragma once

#include <memory>

#include "ops/ops.h"

namespace rwkvx {

/// NVIDIA GPUs of compute capability 8.0 and newer. Everything runs in one stream; calls return before it is
/// done, download() and synchronize() wait. Errors: no driver, no such GPU, f64.
std::unique_ptr<Ops> make_cuda_ops(Precision precision, int device);

}  // namespace rwkvx
