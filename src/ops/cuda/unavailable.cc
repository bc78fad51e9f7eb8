#include "base/error.h"
#include "ops/cuda/cuda_ops.h"

/// In builds without CUDA.
namespace rwkvx {

std::unique_ptr<Ops> make_cuda_ops(Precision, int) {
  fail(
      "this rwkvx was built without CUDA; build it where the CUDA toolkit (nvcc) is installed, "
      "or use "
      "--device cpu");
}

}  // namespace rwkvx
