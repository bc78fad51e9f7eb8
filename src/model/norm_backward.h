#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "ops/training.h"

namespace rwkvx {

/// Backward of y = layer_norm(x) with the model's epsilon, all [R, C] real: dx = the gradient of x, or with
/// `add` (a residual stream's norm) dx += it. dx may be dy. Gradients of gain and bias are added to.
inline void norm_backward(TrainingOps& training, const NormWeights& w, const NormGradients& dw, ConstView x,
                          ConstView dy, View dx, bool add) {
  training.layer_norm_backward({.x = x,
                                .gain = w.gain,
                                .eps = kNormEps,
                                .dy = dy,
                                .dx = dx,
                                .add = add,
                                .dgain = dw.gain,
                                .dbias = dw.bias});
}

}  // namespace rwkvx
