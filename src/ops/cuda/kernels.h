#pragma once

#include "ops/cuda/gpu.h"
#include "ops/cuda/sequences.h"
#include "ops/ops.h"
#include "ops/training.h"

/// The operations of ops.h and ops/training.h on the GPU: each as it is described there, in a .cu file of its
/// own. All are asked for in the GPU's stream and return before they are done.
namespace rwkvx::cuda {

// rows.cu
/// What the code that this GPU runs was compiled for, 90 for Hopper: with PTX of an older one, less than it
/// is.
int code_architecture();
void layer_norm(Gpu& gpu, ConstView x, ConstView gain, ConstView bias, float eps, View y);
void token_shift(Gpu& gpu, ConstView x, ConstView mix, std::span<const int64_t> offsets,
                 std::span<void* const> last, std::span<const View> y);
void embed(Gpu& gpu, std::span<const int32_t> tokens, ConstView table, View y);
void gather_rows(Gpu& gpu, ConstView x, std::span<const int64_t> rows, View y);

// time_mix.cu
void wkv7_operands(Gpu& gpu, const Wkv7Operands& call);
void wkv7_output(Gpu& gpu, const Wkv7Output& call);

// wkv7.cu
void wkv7(Gpu& gpu, const Wkv7Call& call, Precision precision);

// fused.cu
void norm_shift(Gpu& gpu, const NormShift& call);
void wkv7_step(Gpu& gpu, const Wkv7Step& call, Precision precision);

// kv.cu
void kv_append(Gpu& gpu, ConstView k, ConstView v, std::span<const int64_t> offsets,
               std::span<const KvChunks> kv);
void kv_vote(Gpu& gpu, const KvVote& call);
void kv_distinct(Gpu& gpu, const KvDistinct& call);
void kv_keep(Gpu& gpu, const KvChunks& kv, ConstView kept);

// attention.cu
void chunk_attention(Gpu& gpu, const ChunkAttention& call, Precision precision);

// rows_backward.cu
void embed_backward(Gpu& gpu, std::span<const int32_t> tokens, ConstView dy, View dtable);
void layer_norm_backward(Gpu& gpu, const LayerNormBackward& call);
void token_shift_backward(Gpu& gpu, const TokenShiftBackward& call);

// time_mix_backward.cu
void wkv7_operands_backward(Gpu& gpu, const Wkv7Operands& forward, const Wkv7OperandsGradients& gradients);
void wkv7_output_backward(Gpu& gpu, const Wkv7Output& forward, const Wkv7OutputGradients& gradients);

// wkv7_backward.cu
void wkv7_backward(Gpu& gpu, const Wkv7Call& forward, const Wkv7Gradients& gradients, Precision precision);

// attention_backward.cu
void chunk_attention_backward(Gpu& gpu, const ChunkAttention& forward,
                              const ChunkAttentionGradients& gradients, Precision precision);

// sampled_losses.cu
void gate_loss(Gpu& gpu, const ChunkAttention& forward, const GateLoss& loss);
void pointing_loss(Gpu& gpu, const ChunkAttention& forward, const PointingLoss& loss);

// losses.cu
void cross_entropy(Gpu& gpu, const CrossEntropy& call);

// optimizer.cu
void sums_of_squares(Gpu& gpu, std::span<const ConstView> xs, std::span<double> sums);
void adamw(Gpu& gpu, std::span<const AdamWTensor> tensors, const AdamWStep& step);

}  // namespace rwkvx::cuda
