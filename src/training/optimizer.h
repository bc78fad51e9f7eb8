#pragma once

#include <span>
#include <vector>

#include "model/parameters.h"
#include "ops/training.h"

namespace rwkvx {

/// AdamW over the tensors of a model that train. As in RWKV-LM, weight decay applies to the embedding, the
/// head and the large matrices only, and the decays' offsets (w0) learn twice as fast.
class Optimizer {
 public:
  /// Moments are zero.
  explicit Optimizer(Parameters& parameters);

  struct Moments {
    const Parameters::Tensor* tensor;
    View first, second;  ///< real, of the tensor's shape
  };
  std::span<const Moments> moments() const { return moments_; }
  int64_t elements() const { return memory_.view().elements() / 2; }

  /// ‖g‖ over all gradients. Errors: a gradient that is not finite, by its tensor's name.
  double gradient_norm();
  /// Updates masters, moments and weights.
  void step(const AdamWStep& step) { parameters_.ops().training().adamw(updates_, step); }

 private:
  Parameters& parameters_;
  Buffer memory_;
  std::vector<Moments> moments_;
  std::vector<AdamWTensor> updates_;
};

}  // namespace rwkvx
