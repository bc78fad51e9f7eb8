#pragma once

#include "ops/cuda/wkv7_chunk_parts.h"

/// What the kernels of the backward in chunks share; docs/math/wkv7.md, "Backward in chunks".
namespace rwkvx::cuda {

/// Products of decays over a chunk have room for this much (log₂); resets beyond it forget less each: 5 of
/// them in a chunk still 2⁻³⁴, 16 of them 2⁻¹⁰, about what rounding to tf32 loses. Only where nearly every
/// token is a reset are gradients off by percents.
inline constexpr float kLogRoom = 172.0f;

/// Prefix sums of logarithms with resets that leave room. A sum is −36 for each reset, and more than −30 for
/// all other decays of a chunk.
__device__ __forceinline__ float resets_of(float sum) { return floorf(fmaf(sum, 1.0f / kResetLog, 0.01f)); }
struct Relief {
  float4 of_reset;
  __device__ __forceinline__ float4 operator()(float4 sum) const {
    return make_float4(fmaf(resets_of(sum.x), of_reset.x, sum.x), fmaf(resets_of(sum.y), of_reset.y, sum.y),
                       fmaf(resets_of(sum.z), of_reset.z, sum.z), fmaf(resets_of(sum.w), of_reset.w, sum.w));
  }
};
__device__ __forceinline__ float relief(float all) {
  return fmaxf(0.0f, -kResetLog - __fdividef(kLogRoom, fmaxf(1.0f, resets_of(all))));
}
/// As if resets had been less deep.
__device__ __forceinline__ void relieve(Decays& d) {
  const Relief relieved{make_float4(relief(d.all.x), relief(d.all.y), relief(d.all.z), relief(d.all.w))};
  const float4 before = relieved(d.before);
#pragma unroll
  for (int i = 0; i < kPartTokens; ++i) {
    const float4 sum = relieved(plus(d.before, d.sums[i]));
    d.sums[i] = make_float4(sum.x - before.x, sum.y - before.y, sum.z - before.z, sum.w - before.w);
  }
  d.before = before;
  d.all = relieved(d.all);
  d.middle = make_float4(0.5f * d.all.x, 0.5f * d.all.y, 0.5f * d.all.z, 0.5f * d.all.w);
}

/// What the gradient of the state needs: a ordered by row_of_token(), the others not; [t, channel], scaled
/// but for dy.
struct GradientOperands {
  Rows a, r, b, dy;
};

/// The gradient of the state behind the chunk, g [16, N] of this warp, becomes that of the state before it,
/// up to the scale of its columns; z is Z. `outputs`: whether dy counts; `kRounded`: it is, to tf32. Two
/// halves: between them A_ab is inverted.
__device__ __forceinline__ void begin_gradient(const StateRows& g, const GradientOperands& c, int lane,
                                               TokenColumns& u) {
  zero(u);
  add_state_times_rows(u, g, c.b, lane / 4, lane % 4);
}
template <bool kRounded>
__device__ __forceinline__ void end_gradient(StateRows& g, const GradientOperands& c, const Scores& inverse,
                                             const Scores& rb, bool outputs, int first_row, int lane,
                                             TokenColumns& u, uint32_t (&dy)[kTokenTiles][4],
                                             uint32_t (&z)[kTokenTiles][4]) {
  const int of_row = lane / 4, t = lane % 4;
  if (outputs) {
    transposed_rows<kRounded>(c.dy, first_row, of_row, t, dy);
    add_times_transposed_scores<false>(u, dy, rb, of_row, t);
    add_tokens_times_rows(g, dy, c.r, of_row, t);
  }
  solve_transposed(u, inverse, of_row, t, z);
  add_tokens_times_rows(g, z, c.a, of_row, t);
}

}  // namespace rwkvx::cuda
