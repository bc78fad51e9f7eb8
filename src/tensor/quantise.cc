#include "tensor/quantise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/assert.h"
#include "tensor/blocks.h"

namespace rwkvx {
namespace {

/// Whole numbers within ±2^22, rounded to nearest even; the compiler makes vectors of it.
float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

float inverse(float x) { return x == 0 ? 0 : 1 / x; }

/// NaN, which comes of infinite scales, becomes `low`.
float bounded(float x, float low, float high) { return std::min(high, std::max(low, x)); }

void compress(const float* x, BlockQ8_0& to) {
  float largest = 0;
  for (int k = 0; k < kSmallBlock; ++k) largest = std::max(largest, std::abs(x[k]));
  const float d = largest / 127, id = inverse(d);
  to.d = to_float16(d);
  for (int k = 0; k < kSmallBlock; ++k) {
    to.q[k] = static_cast<int8_t>(bounded(std::round(x[k] * id), -127, 127));
  }
}

void compress(const float* x, BlockQ4_0& to) {
  float largest = 0;  // with its sign: it becomes −8
  for (int k = 0; k < kSmallBlock; ++k) {
    if (std::abs(x[k]) > std::abs(largest)) largest = x[k];
  }
  const float d = largest / -8, id = inverse(d);
  to.d = to_float16(d);
  const auto rounded = [&](int k) {
    return static_cast<uint8_t>(bounded(x[k] * id + 8.5f, 0, 15));  // cut off
  };
  for (int k = 0; k < kSmallBlock / 2; ++k) {
    to.q[k] = static_cast<uint8_t>(rounded(k) | (rounded(k + kSmallBlock / 2) << 4));
  }
}

/// How much an element's squared error counts: products sum x·w, and large weights make large products.
template <size_t n>
std::array<float, n> importance(const float* x) {
  float squares = 0;
  for (size_t i = 0; i < n; ++i) squares += x[i] * x[i];
  const float rms = std::sqrt(squares / static_cast<float>(n));
  std::array<float, n> weights;
  for (size_t i = 0; i < n; ++i) weights[i] = rms + std::abs(x[i]);
  return weights;
}

/// x ≈ scale · q − min with min ≥ 0.
struct Line {
  float scale = 0, min = 0;
};

/// The line that leaves the least squared error for whole numbers q from 0 to `most`. Candidates stretch the
/// range of x a little; for each, x is rounded and the line is fitted to what came out by least squares.
Line fit_line(const float* x, int most) {
  constexpr int n = 32;
  float low = 0, high = 0;  // 0 must be within the range: min ≥ 0
  for (int i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  if (!(high > low)) return {0, -low};
  const auto weights = importance<n>(x);
  float sum_w = 0, sum_x = 0;
  for (int i = 0; i < n; ++i) {
    sum_w += weights[static_cast<size_t>(i)];
    sum_x += weights[static_cast<size_t>(i)] * x[i];
  }
  const auto top = static_cast<float>(most);
  Line best;
  float best_error = INFINITY;
  constexpr int kCandidates = 24;
  for (int c = 0; c < kCandidates; ++c) {
    const float inverse_scale = (top - 1.2f + 0.1f * static_cast<float>(c)) / (high - low);
    float sum_q = 0, sum_qq = 0, sum_qx = 0;
    float q[n];
    for (int i = 0; i < n; ++i) {
      q[i] = bounded(nearest((x[i] - low) * inverse_scale), 0, top);
      const float wq = weights[static_cast<size_t>(i)] * q[i];
      sum_q += wq;
      sum_qq += wq * q[i];
      sum_qx += wq * x[i];
    }
    Line line;
    const float determinant = sum_w * sum_qq - sum_q * sum_q;
    if (determinant <= 0) continue;
    line.scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
    line.min = -(sum_qq * sum_x - sum_q * sum_qx) / determinant;
    if (line.min < 0) {
      line.min = 0;
      line.scale = sum_qx / sum_qq;
    }
    float error = 0;
    for (int i = 0; i < n; ++i) {
      const float e = line.scale * q[i] - line.min - x[i];
      error += weights[static_cast<size_t>(i)] * e * e;
    }
    if (line.scale > 0 && error < best_error) {
      best_error = error;
      best = line;
    }
  }
  if (best_error == INFINITY) best = {(high - low) / top, -low};
  return best;
}

/// Scales of eight sub-blocks on their grid of 6 bits, and the elements rounded on the lines that follow.
template <typename Block>
void compress_lines(const float* x, int most, Block& to, uint8_t* q) {
  std::array<Line, 8> lines;
  float scale = 0, min = 0;
  for (size_t s = 0; s < 8; ++s) {
    lines[s] = fit_line(x + 32 * s, most);
    scale = std::max(scale, lines[s].scale);
    min = std::max(min, lines[s].min);
  }
  to.d = to_float16(scale / 63);
  to.d_min = to_float16(min / 63);
  const float d = to_float(to.d), d_min = to_float(to.d_min);
  const auto six_bits = [](float value, float unit) {
    return static_cast<uint8_t>(bounded(nearest(value * inverse(unit)), 0, 63));
  };
  for (int s = 0; s < 8; ++s) {
    const uint8_t sc = six_bits(lines[static_cast<size_t>(s)].scale, d);
    const uint8_t m = six_bits(lines[static_cast<size_t>(s)].min, d_min);
    to.scales.set(s, sc, m);
    const float unit = inverse(d * static_cast<float>(sc)), shift = d_min * static_cast<float>(m);
    for (int i = 0; i < 32; ++i) {
      const float rounded = nearest((x[32 * s + i] + shift) * unit);
      q[32 * s + i] = static_cast<uint8_t>(bounded(rounded, 0, static_cast<float>(most)));
    }
  }
}

/// Low four bits of sub-blocks, two in a byte.
void pack_halves(const uint8_t* q, uint8_t* to) {
  for (int p = 0; p < 4; ++p) {
    for (int i = 0; i < 32; ++i) {
      to[32 * p + i] = static_cast<uint8_t>((q[64 * p + i] & 15) | ((q[64 * p + 32 + i] & 15) << 4));
    }
  }
}

void compress(const float* x, BlockQ4_K& to) {
  uint8_t q[kSuperBlock];
  compress_lines(x, 15, to, q);
  pack_halves(q, to.q);
}

void compress(const float* x, BlockQ5_K& to) {
  uint8_t q[kSuperBlock];
  compress_lines(x, 31, to, q);
  pack_halves(q, to.q);
  for (int i = 0; i < 32; ++i) {
    int bits = 0;
    for (int s = 0; s < 8; ++s) bits |= (q[32 * s + i] >> 4) << s;
    to.high[i] = static_cast<uint8_t>(bits);
  }
}

/// The scale that leaves the least squared error of x ≈ scale · q for whole numbers −32 ≤ q < 32.
float fit_scale(const float* x) {
  constexpr int n = 16;
  float largest = 0;
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > std::abs(largest)) largest = x[i];
  }
  if (largest == 0) return 0;
  const auto weights = importance<n>(x);
  float best = -largest / 32, best_gain = -1;  // the first stays where squares overflow
  for (int c = -9; c <= 9; ++c) {
    const float inverse_scale = -(32 + 0.1f * static_cast<float>(c)) / largest;
    float sum_qq = 0, sum_qx = 0;
    for (int i = 0; i < n; ++i) {
      const float q = bounded(nearest(x[i] * inverse_scale), -32, 31);
      const float wq = weights[static_cast<size_t>(i)] * q;
      sum_qq += wq * q;
      sum_qx += wq * x[i];
    }
    // The error of the best scale, Σqx / Σqq, is Σxx − (Σqx)² / Σqq.
    if (sum_qq > 0 && sum_qx * sum_qx > best_gain * sum_qq) {
      best_gain = sum_qx * sum_qx / sum_qq;
      best = sum_qx / sum_qq;
    }
  }
  return best;
}

void compress(const float* x, BlockQ6_K& to) {
  std::array<float, 16> scales;
  float largest = 0;  // with its sign: it becomes −128
  for (size_t s = 0; s < 16; ++s) {
    scales[s] = fit_scale(x + 16 * s);
    if (std::abs(scales[s]) > std::abs(largest)) largest = scales[s];
  }
  to.d = to_float16(largest / -128);
  const float d = to_float(to.d), id = inverse(d);
  uint8_t q[kSuperBlock];
  for (size_t s = 0; s < 16; ++s) {
    const float sc = bounded(nearest(scales[s] * id), -128, 127);
    to.scales[s] = static_cast<int8_t>(sc);
    const float unit = inverse(d * sc);
    for (size_t i = 16 * s; i < 16 * s + 16; ++i) {
      q[i] = static_cast<uint8_t>(bounded(nearest(x[i] * unit), -32, 31) + 32);
    }
  }
  for (int k = 0; k < kSuperBlock; ++k) {
    const int half = k / 128, j = k / 32 % 4, i = k % 32;
    uint8_t& low = to.low[64 * half + 32 * (j % 2) + i];
    low = static_cast<uint8_t>(low | ((q[k] & 15) << (j / 2 * 4)));
    uint8_t& high = to.high[32 * half + i];
    high = static_cast<uint8_t>(high | ((q[k] >> 4) << (2 * j)));
  }
}

bool all_finite(const float* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * 0;
  return sum == 0;
}

template <typename Block>
void compress_all(const float* from, void* blocks, int64_t count, int64_t elements) {
  auto* b = static_cast<Block*>(blocks);
  for (int64_t i = 0; i < count / elements; ++i) {
    const float* x = from + i * elements;
    std::memset(&b[i], 0, sizeof b[i]);
    if (all_finite(x, elements)) {
      compress(x, b[i]);
    } else {
      b[i].d = to_float16(NAN);
    }
  }
}

}  // namespace

void quantise(const float* from, DType type, void* blocks, int64_t count) {
  RWKVX_ASSERT(count % info(type).block_elements == 0);
  switch (type) {
    case DType::q8_0:
      return compress_all<BlockQ8_0>(from, blocks, count, kSmallBlock);
    case DType::q4_0:
      return compress_all<BlockQ4_0>(from, blocks, count, kSmallBlock);
    case DType::q4_k:
      return compress_all<BlockQ4_K>(from, blocks, count, kSuperBlock);
    case DType::q5_k:
      return compress_all<BlockQ5_K>(from, blocks, count, kSuperBlock);
    case DType::q6_k:
      return compress_all<BlockQ6_K>(from, blocks, count, kSuperBlock);
    default:
      RWKVX_ASSERT(!"a type that is_computable()");
  }
}

}  // namespace rwkvx
