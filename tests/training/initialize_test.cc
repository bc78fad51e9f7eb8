// Initial weights against what RWKV-LM's code gives (RWKV-v7/train_temp/src/model.py).
#include "training/initialize.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "model/weights.h"

namespace rwkvx {
namespace {

std::vector<float> values(const ModelConfig& config, const std::string& name, uint64_t seed = 1) {
  for (const TensorSpec& spec : tensor_list(config)) {
    if (spec.name != name) continue;
    std::vector<float> out(static_cast<size_t>(spec.shape.elements()), NAN);
    initialize(spec, config, seed, out);
    return out;
  }
  ADD_FAILURE() << name;
  return {};
}

/// |AᵀA - gain² I| for the shorter side.
double orthogonality_error(const std::vector<float>& a, size_t m, size_t n, double gain) {
  double worst = 0;
  const size_t count = std::min(m, n), length = std::max(m, n);
  const auto at = [&](size_t i, size_t k) { return double{m > n ? a[k * n + i] : a[i * n + k]}; };
  for (size_t i = 0; i < count; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (size_t k = 0; k < length; ++k) sum += at(i, k) * at(j, k);
      worst = std::max(worst, std::abs(sum - (i == j ? gain * gain : 0)));
    }
  }
  return worst;
}

TEST(Initialize, SizesOfRwkvLm) {
  // The ranks of the public 0.1B and 1.5B shapes by the same formulas.
  const ModelConfig small = model_sizes(12, 768, 65536);
  EXPECT_EQ(small.decay_rank, 64);
  EXPECT_EQ(small.rate_rank, 64);
  EXPECT_EQ(small.value_rank, 32);
  EXPECT_EQ(small.gate_rank, 128);
  const ModelConfig large = model_sizes(24, 2048, 65536, 6);
  EXPECT_EQ(large.decay_rank, 128);
  EXPECT_EQ(large.value_rank, 64);
  EXPECT_EQ(large.gate_rank, 224);
  EXPECT_EQ(large.ffn, 8192);
  EXPECT_EQ(large.sparse_blocks, 6);
}

TEST(Initialize, Vectors) {
  // Computed with the formulas in Python: C = 128, 4 layers, mostly layer 1 and channel 70.
  const ModelConfig config = model_sizes(4, 128, 256, 2);
  const auto at = [&](const char* name, size_t channel) { return values(config, name)[channel]; };
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_r", 70), 0.08655330127630612f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_g", 70), 0.08655330127630612f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_w", 70), 0.33461279176928993f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_a", 70), 0.33461279176928993f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_k", 70), 0.2715642750032191f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.x_v", 70), 0.2715642750032191f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.w0", 70), -4.983663384513529f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.a0", 70), -0.36612619851090045f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.v0", 70), 0.7095275590551181f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.k_k", 70), 0.7048818897637795f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.k_a", 70), 1.02f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.r_k", 70), -0.04f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.ln_x.weight", 70), 0.6155722066724582f);
  EXPECT_FLOAT_EQ(at("blocks.1.att.ln_x.bias", 70), 0.0f);
  EXPECT_FLOAT_EQ(at("blocks.0.att.w0", 127), 3.0f);
  EXPECT_FLOAT_EQ(at("blocks.1.ffn.x_k", 70), 0.17383622724470793f);
  EXPECT_FLOAT_EQ(at("moba.1.ffn.x_k", 70), 0.037018365855478685f);
  for (const float x : values(config, "blocks.3.att.ln_x.weight")) EXPECT_EQ(x, 1.0f);
  for (const float x : values(config, "blocks.2.ln1.weight")) EXPECT_EQ(x, 1.0f);
  for (const float x : values(config, "moba.1.ln2.bias")) EXPECT_EQ(x, 0.0f);
  for (const float x : values(config, "ln_out.weight")) EXPECT_EQ(x, 1.0f);
}

TEST(Initialize, Matrices) {
  const ModelConfig config = model_sizes(2, 64, 256, 1);
  for (const char* name : {"blocks.0.att.output.weight", "blocks.1.ffn.value.weight", "blocks.1.att.v1",
                           "blocks.0.att.w1", "moba.0.att.output.weight", "moba.0.ffn.value.weight"}) {
    for (const float x : values(config, name)) ASSERT_EQ(x, 0.0f) << name;
  }
  // Rounded to float32, a dot product of 256 numbers of size 1/8 is off by 1e-8 or so.
  EXPECT_LT(orthogonality_error(values(config, "blocks.1.att.receptance.weight"), 64, 64, 1), 1e-6);
  EXPECT_LT(orthogonality_error(values(config, "blocks.1.att.key.weight"), 64, 64, 0.1), 1e-6);
  EXPECT_LT(orthogonality_error(values(config, "blocks.0.ffn.key.weight"), 256, 64, 1), 1e-6);
  EXPECT_LT(orthogonality_error(values(config, "blocks.0.att.g2"), 64, 32, 0.1), 1e-6);
  EXPECT_LT(orthogonality_error(values(config, "moba.0.att.key.weight"), 64, 64, 1), 1e-6);
  EXPECT_LT(orthogonality_error(values(config, "head.weight"), 256, 64, 1), 1e-6);  // 0.5 · √(256 / 64)
  const auto embedding = values(config, "emb.weight");
  const auto [low, high] = std::minmax_element(embedding.begin(), embedding.end());
  EXPECT_GE(*low, -1e-4f);
  EXPECT_LE(*high, 1e-4f);
  EXPECT_GT(*high - *low, 1.9e-4f);
  std::vector<float> larger(embedding.size());
  for (const TensorSpec& spec : tensor_list(config)) {
    if (spec.name == "emb.weight") initialize(spec, config, 1, larger, 0.5);
  }
  EXPECT_GT(*std::max_element(larger.begin(), larger.end()), 0.49f);
  EXPECT_LE(*std::max_element(larger.begin(), larger.end()), 0.5f);
}

TEST(Initialize, SeedsAndTensorsDiffer) {
  const ModelConfig config = model_sizes(2, 64, 256);
  const auto first = values(config, "blocks.0.att.value.weight");
  EXPECT_EQ(first, values(config, "blocks.0.att.value.weight"));
  EXPECT_NE(first, values(config, "blocks.0.att.value.weight", 2));
  EXPECT_NE(first, values(config, "blocks.1.att.value.weight"));
}

}  // namespace
}  // namespace rwkvx
