#pragma once

#include "ops/cuda/kernel.h"

/// The second halves of the low-rank products of one row, for 64 outputs of each that a block of 8 warps has:
/// w [C, in] · x [in], by tensor cores as few_rows_tensor.cu does. All steps of 32 inputs stand behind each
/// other, matrix after matrix; warp i has outputs 16 (i mod 4) … of the first or the second half of them.
namespace rwkvx::cuda {

struct LowRank {
  static constexpr int kMost = 4;
  static constexpr int kMostSteps = 20;  // of all together

  struct One {
    const Bf16* w;
    const Bf16* x;  // [R, in]
    int in, steps;  // none if there is no such product
  };
  One of[kMost];
  bool constant;  // the weights never change
};

class LowRankProducts {
 public:
  struct Shared {
    uint4 x[4 * LowRank::kMostSteps];
    float parts[2][LowRank::kMost][kHead];
    float sums[LowRank::kMost][kHead];
  };
  static constexpr int kThreads = 256;

  __device__ __forceinline__ LowRankProducts(const LowRank& all)
      : all_(all), lane_(static_cast<int>(threadIdx.x) % 32), warp_(static_cast<int>(threadIdx.x) / 32) {
    steps_ = 0;
    for (int m = 0; m < LowRank::kMost; ++m) steps_ += all.of[m].steps;
    const int half = (steps_ + 1) / 2;
    begin_ = warp_ / 4 * half;
    end_ = min(begin_ + half, steps_);
  }

  /// Weights of outputs first … first + 63, before anything that an earlier kernel wrote is there.
  __device__ __forceinline__ void load(int first, Shared& shared) {
    for (int i = static_cast<int>(threadIdx.x); i < 2 * LowRank::kMost * kHead; i += kThreads) {
      (&shared.parts[0][0][0])[i] = 0.0f;
    }
    const int g = lane_ / 4, t = lane_ % 4;
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const Place place = place_of(min(begin_ + a, steps_ - 1));
      const LowRank::One& one = all_.of[place.matrix];
      const int unit = min(4 * place.step + t, one.in / 8 - 1);
      const Bf16* from = one.w + static_cast<int64_t>(first + warp_ % 4 * 16 + g) * one.in + 8 * unit;
      const bool valid = begin_ + a < end_;
      w_[a][0] = w_[a][1] = make_uint4(0, 0, 0, 0);
      load_once_if(w_[a][0], from, valid);
      load_once_if(w_[a][1], from + 8 * one.in, valid);
    }
  }
  /// A barrier is needed behind this.
  __device__ __forceinline__ void load_inputs(int64_t row, Shared& shared) const {
    const int i = static_cast<int>(threadIdx.x);
    if (i >= 4 * steps_) return;
    const Place place = place_of(i / 4);
    const LowRank::One& one = all_.of[place.matrix];
    const int unit = 4 * place.step + i % 4;
    uint4 x = make_uint4(0, 0, 0, 0);
    load_if(x, one.x + row * one.in + 8 * min(unit, one.in / 8 - 1), 8 * unit < one.in);
    shared.x[i] = x;
  }
  /// Into shared.sums; the last barrier is behind them.
  __device__ __forceinline__ void multiply(Shared& shared) const {
    const int g = lane_ / 4, t = lane_ % 4;
    float sum[4] = {};
    int matrix = place_of(begin_).matrix;
    const auto store = [&] {
      if (t == 0) {
        float* const to = shared.parts[warp_ / 4][matrix] + warp_ % 4 * 16 + g;
        to[0] = sum[0];
        to[8] = sum[2];
      }
    };
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (begin_ + a >= end_) break;
      const int now = place_of(begin_ + a).matrix;
      if (now != matrix) {
        store();
        matrix = now;
        sum[0] = sum[1] = sum[2] = sum[3] = 0.0f;
      }
      const uint4 v = shared.x[4 * (begin_ + a) + t];
      const uint4 &w0 = w_[a][0], &w1 = w_[a][1];
      mma_bf16(sum, {w0.x, w1.x, w0.y, w1.y}, {v.x, v.y});
      mma_bf16(sum, {w0.z, w1.z, w0.w, w1.w}, {v.z, v.w});
    }
    if (begin_ < end_) store();
    __syncthreads();
    const int i = static_cast<int>(threadIdx.x);
    (&shared.sums[0][0])[i] = (&shared.parts[0][0][0])[i] + (&shared.parts[1][0][0])[i];
    __syncthreads();
  }

 private:
  static constexpr int kAhead = LowRank::kMostSteps / 2;
  static_assert(kThreads == LowRank::kMost * kHead);

  struct Place {
    int matrix, step;
  };
  __device__ __forceinline__ Place place_of(int step) const {
    int matrix = 0;
    while (matrix + 1 < LowRank::kMost && step >= all_.of[matrix].steps) step -= all_.of[matrix++].steps;
    return {matrix, step};
  }

  const LowRank& all_;
  int lane_, warp_, steps_, begin_, end_;
  uint4 w_[kAhead][2];
};

}  // namespace rwkvx::cuda
