#pragma once

#include <cstdint>
#include <span>

#include "model/config.h"
#include "model/tensor_list.h"

namespace rwkvx {

/// Sizes that RWKV-LM gives a model of `channels`: ranks that grow with √C, and 4 C channels in the channel
/// mix. Source: RWKV-LM, RWKV-v7/train_temp/src/model.py.
ModelConfig model_sizes(int64_t layers, int64_t channels, int64_t vocab, int64_t sparse_blocks = 0);

/// Of RWKV-LM's initial embeddings.
inline constexpr double kEmbeddingLimit = 1e-4;

/// The initial values of a tensor of a new model, those of RWKV-LM's RWKV-v7/train_temp (the same source) for
/// RWKV-7 and of RWKV-X's training code for sparse blocks: orthogonal projections, outputs zero, token
/// shifts, decays and rates spread over the channels. `out` is of the layout of `spec`. The same seed gives
/// the same values; each tensor draws its own. Embeddings are from −`embedding` to `embedding`.
void initialize(const TensorSpec& spec, const ModelConfig& config, uint64_t seed, std::span<float> out,
                double embedding = kEmbeddingLimit);

}  // namespace rwkvx
