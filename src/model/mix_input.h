#pragma once

#include "model/batch.h"
#include "model/weights.h"

namespace rwkvx {

/// What a time mix or channel mix works on: n = layer_norm(x), whose rows it shifts.
struct MixInput {
  const NormWeights& norm;
  ConstView x;  ///< [R, C] real
  View normed;  ///< [R, C] real: room for n, where a backward finds it; otherwise a temporary
  int64_t rows() const { return x.dim(0); }
  int64_t channels() const { return x.dim(1); }
};

/// y[m] = n + (previous n − n) · mix[m], and products of that. `keep`: n and y are needed afterwards.
inline void norm_shift_linear(Ops& ops, const MixInput& input, bool keep, ConstView mix, const Batch& batch,
                              std::span<void* const> last, std::span<const View> y,
                              std::span<const LinearCall> products) {
  const NormShift norm{.x = input.x,
                       .gain = input.norm.gain,
                       .bias = input.norm.bias,
                       .eps = kNormEps,
                       .normed = input.normed,
                       .normed_needed = keep,
                       .mix = mix,
                       .offsets = batch.offsets,
                       .last = last,
                       .y = y};
  if (!keep) return ops.norm_shift_linear(norm, products);
  ops.norm_shift(norm);
  if (!products.empty()) ops.linear(products);
}

}  // namespace rwkvx
