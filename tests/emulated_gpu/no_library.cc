#include "ops/cuda/matrix.h"

namespace rwkvx::cuda {

bool multiply_by_library(Gpu&, const Product&) { return false; }

}  // namespace rwkvx::cuda
