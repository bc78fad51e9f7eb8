#include "training/initialize.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numbers>
#include <string_view>
#include <vector>

#include "base/assert.h"
#include "base/hash.h"
#include "base/random.h"
#include "ops/ops.h"

namespace rwkvx {
namespace {

double number(int64_t n) { return static_cast<double>(n); }

int64_t rank_for(int64_t channels, double factor) {
  return std::max<int64_t>(
      32, 32 * static_cast<int64_t>(std::nearbyint(factor * std::sqrt(number(channels)) / 32)));
}

/// Normal, by Box and Muller.
double normal(Random& random) {
  const double u = 1 - random.uniform(), v = random.uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

/// out [m, n] = gain · a random matrix with orthonormal columns (rows, where there are fewer): Gram and
/// Schmidt on normal numbers, in float64.
void orthogonal(std::span<float> out, int64_t m, int64_t n, double gain, Random& random) {
  const int64_t count = std::min(m, n), length = std::max(m, n);
  std::vector<double> q(static_cast<size_t>(count * length));  // [count, length]
  for (double& x : q) x = normal(random);
  const auto vector = [&](int64_t i) { return q.data() + i * length; };
  const auto dot = [&](const double* a, const double* b) {
    double sums[4] = {};  // four chains, so that the processor need not wait for each addition
    int64_t i = 0;
    for (; i + 4 <= length; i += 4) {
      for (int64_t j = 0; j < 4; ++j) sums[j] += a[i + j] * b[i + j];
    }
    for (; i < length; ++i) sums[0] += a[i] * b[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
  };
  for (int64_t i = 0; i < count; ++i) {
    double* const x = vector(i);
    for (int64_t j = 0; j < i; ++j) {
      const double* const y = vector(j);
      const double along = dot(x, y);
      for (int64_t k = 0; k < length; ++k) x[k] -= along * y[k];
    }
    const double scale = 1 / std::sqrt(dot(x, x));
    for (int64_t k = 0; k < length; ++k) x[k] *= scale;
  }
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      const double value = m > n ? vector(c)[r] : vector(r)[c];
      out[static_cast<size_t>(r * n + c)] = static_cast<float>(gain * value);
    }
  }
}

void uniform(std::span<float> out, double limit, Random& random) {
  for (float& x : out) x = static_cast<float>(limit * (2 * random.uniform() - 1));
}

/// The number behind the first dot of "blocks.12.att.w0" and "moba.1.ffn.x_k".
int64_t block_of(std::string_view name) {
  name.remove_prefix(std::min(name.find('.') + 1, name.size()));
  int64_t index = 0;
  std::from_chars(name.data(), name.data() + name.size(), index);
  return index;
}

/// A vector's value at channel n.
double vector_value(std::string_view tail, const ModelConfig& config, int64_t block, bool sparse, int64_t n) {
  const int64_t C = config.channels, blocks = sparse ? config.sparse_blocks : config.layers;
  const double position = number(n) / number(C);    // 0 … almost 1
  const double spread = number(n) / number(C - 1);  // 0 … 1
  const double linear = spread - 0.5;
  const double from_first = 1 - number(block) / number(blocks);                // 1 … almost 0
  const double depth = blocks > 1 ? number(block) / number(blocks - 1) : 0.0;  // 0 … 1
  const double half = number(kHeadSize - 1) / 2, within = (number(n % kHeadSize) - half) / half;
  const double zigzag = within * std::abs(within);  // −1 … 1 inside each head
  const auto shift = [&](double power) { return 1 - std::pow(position, power * from_first); };
  if (tail == "ffn.x_k") return 1 - std::pow(position, std::pow(from_first, 4));
  if (tail == "att.x_r" || tail == "att.x_g") return shift(0.2);
  if (tail == "att.x_w" || tail == "att.x_a") return shift(0.9);
  if (tail == "att.x_k" || tail == "att.x_v") return shift(0.7);
  if (tail == "att.w0") return -6 + 6 * std::pow(spread, 1 + std::pow(depth, 0.3)) + 0.5 + 2.5 * zigzag;
  if (tail == "att.a0") return -0.19 + 0.3 * zigzag + 0.4 * linear;
  if (tail == "att.v0") return 0.73 - 0.4 * linear;
  if (tail == "att.k_k") return 0.71 - 0.1 * linear;
  if (tail == "att.k_a") return 1.02;
  if (tail == "att.r_k") return -0.04;
  if (tail == "att.ln_x.weight") return std::pow((1 + number(block)) / number(config.layers), 0.7);
  if (tail.ends_with(".bias")) return 0;
  RWKVX_ASSERT(tail.ends_with(".weight"));  // of a layer norm
  return 1;
}

}  // namespace

ModelConfig model_sizes(int64_t layers, int64_t channels, int64_t vocab, int64_t sparse_blocks) {
  ModelConfig config;
  config.layers = layers;
  config.sparse_blocks = sparse_blocks;
  config.channels = channels;
  config.ffn = 4 * channels;
  config.vocab = vocab;
  config.decay_rank = rank_for(channels, 2.5);
  config.rate_rank = rank_for(channels, 2.5);
  config.value_rank = layers > 1 ? rank_for(channels, 1.7) : 0;
  config.gate_rank = rank_for(channels, 5);
  return config;
}

void initialize(const TensorSpec& spec, const ModelConfig& config, uint64_t seed, std::span<float> out,
                double embedding) {
  RWKVX_ASSERT(static_cast<int64_t>(out.size()) == spec.shape.elements());
  const std::string_view name = spec.name;
  const bool sparse = name.starts_with("moba.");
  const bool in_block = sparse || name.starts_with("blocks.");
  // "blocks.12.att.w0" -> "att.w0"
  const std::string_view tail = in_block ? name.substr(name.find('.', name.find('.') + 1) + 1) : name;
  const double C = number(config.channels), V = number(config.vocab);
  Random random(seed ^ hash64(std::as_bytes(std::span(name))));
  switch (spec.role) {
    case Role::embedding:
      return uniform(out, embedding, random);
    case Role::head:
      return orthogonal(out, spec.shape[0], spec.shape[1], V > C ? 0.5 * std::sqrt(V / C) : 0.5, random);
    case Role::low_rank:
      // The first of the two is zero, so that the product starts at zero.
      if (tail.ends_with('1')) {
        std::fill(out.begin(), out.end(), 0.0f);
        return;
      }
      return orthogonal(out, spec.shape[0], spec.shape[1], 0.1, random);
    case Role::projection:
      if (tail == "att.output.weight" || tail == "ffn.value.weight") {
        std::fill(out.begin(), out.end(), 0.0f);
        return;
      }
      return orthogonal(out, spec.shape[0], spec.shape[1], tail == "att.key.weight" && !sparse ? 0.1 : 1.0,
                        random);
    default:
      for (int64_t n = 0; n < spec.shape[0]; ++n)
        out[static_cast<size_t>(n)] =
            static_cast<float>(vector_value(tail, config, block_of(name), sparse, n));
  }
}

}  // namespace rwkvx
