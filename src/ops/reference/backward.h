#pragma once

#include <cmath>

#include "ops/reference/access.h"
#include "ops/training.h"

/// The reference backend's part of ops/training.h.
namespace rwkvx::reference {

inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline void add_to(const View& y, int64_t i, double value) { put(y, i, at(y, i) + value); }
/// Of a parameter, which may be frozen.
inline void add_to_parameter(const View& y, int64_t i, double value) {
  if (y) add_to(y, i, value);
}

// row_backward.cc
void layer_norm_backward(const LayerNormBackward& call);
void token_shift_backward(const TokenShiftBackward& call);
void linear_backward(const LinearBackward& call);

// time_mix_backward.cc
void wkv7_operands_backward(const Wkv7Operands& forward, const Wkv7OperandsGradients& gradients);
void wkv7_backward(const Wkv7Call& forward, const Wkv7Gradients& gradients);
void wkv7_output_backward(const Wkv7Output& forward, const Wkv7OutputGradients& gradients);

// attention_backward.cc
void chunk_attention_backward(const ChunkAttention& forward, const ChunkAttentionGradients& gradients);
void gate_loss(const ChunkAttention& forward, const GateLoss& loss);
void pointing_loss(const ChunkAttention& forward, const PointingLoss& loss);

// losses.cc
void cross_entropy(const CrossEntropy& call);
void adamw(const AdamWTensor& tensor, const AdamWStep& step);

/// Of a group of values: what a normalisation (x − mean) · scale needs.
struct Moments {
  double mean, scale;
};
/// Columns begin .. begin + width of row t.
inline Moments moments(const ConstView& x, int64_t t, int64_t begin, int64_t width, float eps) {
  double mean = 0, variance = 0;
  for (int64_t c = begin; c < begin + width; ++c) mean += at(x, t, c);
  mean /= static_cast<double>(width);
  for (int64_t c = begin; c < begin + width; ++c) {
    variance += (at(x, t, c) - mean) * (at(x, t, c) - mean);
  }
  variance /= static_cast<double>(width);
  return {mean, 1 / std::sqrt(variance + static_cast<double>(eps))};
}

/// Sends dy back through (x − mean) · scale · gain + bias for one group; put_one(column, dx).
template <typename Gradient, typename Put>
void normalize_backward(const ConstView& x, int64_t t, int64_t begin, int64_t width, const ConstView& gain,
                        float eps, Gradient dy, const View& dgain, const View& dbias, Put put_one) {
  const Moments m = moments(x, t, begin, width, eps);
  const auto normal = [&](int64_t c) { return (at(x, t, c) - m.mean) * m.scale; };
  double mean = 0, mean_normal = 0;  // of g = gain ⊙ dy, and of g ⊙ normal
  for (int64_t c = begin; c < begin + width; ++c) {
    mean += at(gain, c) * dy(c);
    mean_normal += at(gain, c) * dy(c) * normal(c);
    add_to_parameter(dgain, c, dy(c) * normal(c));
    add_to_parameter(dbias, c, dy(c));
  }
  mean /= static_cast<double>(width);
  mean_normal /= static_cast<double>(width);
  for (int64_t c = begin; c < begin + width; ++c) {
    put_one(c, m.scale * (at(gain, c) * dy(c) - mean - normal(c) * mean_normal));
  }
}

}  // namespace rwkvx::reference
