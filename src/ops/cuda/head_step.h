#pragma once

#include "ops/ops.h"

namespace rwkvx::cuda {

/// A step of the WKV-7 recurrence of one head. Operands and parameters [64] each; value_gate null in the first
/// block.
struct HeadStep {
  const float *r, *decay, *rate, *value_gate, *k, *v, *v_first, *g;
  const float *w0, *a0, *v0, *k_k, *k_a, *r_k, *gain, *bias;
  const float* before;  // the state, [64, 64]
  float* state;         // where the next one goes; may be `before`
  float kept;    // 0: the state is forgotten first; otherwise 1
  float eps;
};
/// Of the first row's first head, without its states.
HeadStep head_step(const Wkv7Step& call);

}  // namespace rwkvx::cuda
