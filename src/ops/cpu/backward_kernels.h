#pragma once

#include "ops/training.h"

/// The vector kernels of the cpu backend's training operations. Each does a part (rows, heads, …) serially;
/// cpu_training.cc splits the work. Gradients of parameters are added to `sums`, memory of the part's own:
/// the parameters' sizes one after another, in the order in which they are named here.
namespace rwkvx::cpu {

// rows_backward.cc: rows begin .. end.
/// Channels begin .. end of all rows: those of one token are added in order of the rows.
void embed_backward_channels(std::span<const int32_t> tokens, ConstView dy, View dtable, int64_t begin,
                             int64_t end);
/// sums: dgain, dbias [C] each.
void layer_norm_backward_rows(const LayerNormBackward& call, int64_t begin, int64_t end, float* sums);
/// Rows of one sequence, which is `first` .. `last`. sums: dmix [M, C].
void token_shift_backward_rows(const TokenShiftBackward& call, int64_t first, int64_t last, int64_t begin,
                               int64_t end, float* sums);
/// Elements begin .. end of du = dy ⊙ activation′(y), f32 or bf16.
void activation_backward(const LinearBackward& call, void* du, DType du_type, int64_t begin, int64_t end);

// time_mix_backward.cc: rows begin .. end.
/// sums: dw0, da0, dv0, dk_k, dk_a [C] each.
void wkv7_operands_backward_rows(const Wkv7Operands& forward, const Wkv7OperandsGradients& gradients,
                                 int64_t begin, int64_t end, float* sums);
/// sums: dr_k, dgain, dbias [C] each.
void wkv7_output_backward_rows(const Wkv7Output& forward, const Wkv7OutputGradients& gradients, int64_t begin,
                               int64_t end, float* sums);

// losses.cc
void cross_entropy_rows(const CrossEntropy& call, int64_t begin, int64_t end);
double sum_of_squares(const float* x, int64_t count);
void adamw_range(const AdamWTensor& tensor, const AdamWStep& step, int64_t begin, int64_t end);

}  // namespace rwkvx::cpu
