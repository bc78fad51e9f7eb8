#pragma once

#include "ops/cuda/kernel.h"

/// norm_shift() of one row within the products that read it: each block makes it for itself, in place of a
/// kernel more.
namespace rwkvx::cuda {

struct RowNorm {
  const float *x, *gain, *bias;  // [C]
  float* last;                   // [C], the row before, overwritten with this one; null: nothing is mixed
  int32_t* ticket;               // zero, and zero again afterwards
  float eps;
  int width;  // C, a multiple of 4
};

inline constexpr int kNormBuffers = 5;  // of C floats, in shared memory

/// The row of a block. Each thread has four channels, again and again, which no other one touches before
/// put().
template <int kThreads>
class BlockNorm {
 public:
  __device__ __forceinline__ BlockNorm(const RowNorm& norm, float* memory)
      : norm_(norm),
        n_(memory),
        before_(memory + norm.width),
        bias_(memory + 2 * norm.width),
        mix_(memory + 3 * norm.width),
        other_(memory + 4 * norm.width) {}

  /// Asks for the norm's own numbers, and for the mix that is wanted first.
  __device__ __forceinline__ void prefetch(const float* mix) {
    fetch(other_, norm_.gain);
    fetch(bias_, norm_.bias);
    if (mix != nullptr) fetch(mix_, mix);
    mixing_ = mix;
  }
  /// n = layer_norm(x).
  __device__ __forceinline__ void normalise() {
    __shared__ float scratch[2][kThreads / 32];
    fetch(n_, norm_.x);
    if (norm_.last != nullptr) fetch(before_, norm_.last);
    copy_async_commit();
    copy_async_wait<0>();
    float sum = 0.0f;
    each([&](int c) {
      const float4 x = load4(n_ + c);
      sum += (x.x + x.y) + (x.z + x.w);
    });
    const auto width = static_cast<float>(norm_.width);
    const float mean = block_total(sum, scratch[0]) / width;
    sum = 0.0f;
    each([&](int c) {
      const float4 d = minus(load4(n_ + c), mean);
      sum += (d.x * d.x + d.y * d.y) + (d.z * d.z + d.w * d.w);
    });
    const float scale = 1.0f / sqrtf(block_total(sum, scratch[1]) / width + norm_.eps);
    each([&](int c) {
      const float4 d = minus(load4(n_ + c), mean), gain = load4(other_ + c), bias = load4(bias_ + c);
      store4(n_ + c, make_float4(d.x * scale * gain.x + bias.x, d.y * scale * gain.y + bias.y,
                                 d.z * scale * gain.z + bias.z, d.w * scale * gain.w + bias.w));
    });
  }
  /// y = n + (before − n) · mix, or n if there is no mix; for all to read behind a barrier. Asks for the mix
  /// that is wanted next.
  __device__ __forceinline__ void put(const float* mix, const float* next_mix, Bf16* y) {
    if (mix == nullptr) return each([&](int c) { store4(y + c, load4(n_ + c)); });
    if (mix != mixing_) {
      float* const was = mix_;
      mix_ = other_, other_ = was;
      if (mix != coming_) fetch(mix_, mix);
      copy_async_commit();
      copy_async_wait<0>();
      mixing_ = mix, coming_ = nullptr;
    }
    each([&](int c) {
      const float4 n = load4(n_ + c), before = load4(before_ + c), share = load4(mix_ + c);
      store4(y + c, make_float4(n.x + (before.x - n.x) * share.x, n.y + (before.y - n.y) * share.y,
                                n.z + (before.z - n.z) * share.z, n.w + (before.w - n.w) * share.w));
    });
    if (next_mix != mix) {
      fetch(other_, next_mix);
      copy_async_commit();
      coming_ = next_mix;
    }
  }
  /// For one thread, when normalise() is done: whether all `blocks` have read `last`.
  __device__ __forceinline__ bool has_read(int blocks) const {
    return norm_.last != nullptr && atomicAdd(norm_.ticket, 1) == blocks - 1;
  }
  /// For the block that was the last to read it.
  __device__ __forceinline__ void finish() const {
    if (threadIdx.x == 0) *norm_.ticket = 0;
    each([&](int c) { store4(norm_.last + c, load4(n_ + c)); });
  }

 private:
  template <typename Work>
  __device__ __forceinline__ void each(const Work& work) const {
    for (int c = 4 * static_cast<int>(threadIdx.x); c < norm_.width; c += 4 * kThreads) work(c);
  }
  __device__ __forceinline__ void fetch(float* to, const float* from) const {
    each([&](int c) { copy_async_16(to + c, from + c); });
  }
  __device__ __forceinline__ static float4 minus(float4 x, float m) {
    return make_float4(x.x - m, x.y - m, x.z - m, x.w - m);
  }
  __device__ __forceinline__ static float block_total(float x, float* scratch) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kThreads / 32; ++w) total += scratch[w];
    return total;
  }

  const RowNorm& norm_;
  float *n_, *before_, *bias_, *mix_, *other_;
  const float *mixing_ = nullptr, *coming_ = nullptr;
};

}  // namespace rwkvx::cuda
