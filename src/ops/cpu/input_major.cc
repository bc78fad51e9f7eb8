#include <algorithm>

#include "base/assert.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_sparse.h"
#include "tensor/half.h"

namespace rwkvx::cpu {
namespace {

float to_float(float x) { return x; }
using rwkvx::to_float;

constexpr int64_t kStep = 32;    // outputs that bf16 pairs
constexpr int64_t kSquare = 64;  // weights turned at a time: both sides stay in the first cache

/// Where output o of a tile lies.
template <typename T>
int64_t place(int64_t o) {
  if constexpr (!std::is_same_v<T, BFloat16>) return o;
  const int64_t i = o % kStep;
  return o - i + 2 * (i % (kStep / 2)) + i / (kStep / 2);
}

template <typename T>
void turn(const T* weight, const InputMajor& to, int64_t t, int64_t first, T* memory) {
  const int64_t width = to.width(t), last = std::min(to.in, first + kSquare);
  T* tile = memory + t * to.tile * to.in;
  for (int64_t o = 0; o < width; ++o) {
    const T* row = weight + (t * to.tile + o) * to.in;
    T* column = tile + place<T>(o);
    for (int64_t i = first; i < last; ++i) column[i * width] = row[i];
  }
}

}  // namespace

bool can_be_input_major(const ConstView& weight) {
  const DType type = weight.dtype();
  return (type == DType::f32 || type == DType::bf16 || type == DType::f16) && weight.dim(0) % 64 == 0;
}

InputMajor input_major(const ConstView& weight, ThreadPool& pool) {
  RWKVX_ASSERT(can_be_input_major(weight));
  InputMajor to;
  to.type = weight.dtype();
  to.out = weight.dim(0);
  to.in = weight.dim(1);
  // Wide, or hardware that fetches ahead would read what is skipped; enough of them for all threads.
  const int64_t share = (to.out / pool.threads() + 63) / 64 * 64;
  to.tile = std::min(std::clamp<int64_t>(share, 128, kMostTile), to.out);
  to.memory = Buffer(to.type, weight.shape());
  const int64_t parts = (to.in + kSquare - 1) / kSquare;
  pool.run(to.tiles() * parts, [&](int64_t task, int) {
    const auto run = [&]<typename T>(T) {
      turn(weight.as<T>(), to, task / parts, task % parts * kSquare, to.memory.view().as<T>());
    };
    switch (to.type) {
      case DType::f32:
        return run(0.0f);
      case DType::bf16:
        return run(BFloat16());
      default:
        return run(Float16());
    }
  });
  return to;
}

int64_t non_zero_elements(int64_t in) { return (2 * in + kPadding - 1) / kPadding * kPadding; }

NonZero find_non_zero(const ConstView& x, float* memory) {
  const int64_t in = x.dim(1);
  NonZero found{0, reinterpret_cast<int32_t*>(memory + in), memory};
  const auto find = [&](const auto* from) {
    for (int64_t i = 0; i < in; ++i) {  // without a branch, which would be guessed wrongly half the time
      const float value = to_float(from[i]);
      found.values[found.count] = value;
      found.indices[found.count] = static_cast<int32_t>(i);
      found.count += value != 0;
    }
  };
  if (x.dtype() == DType::bf16) {
    find(x.as<BFloat16>());
  } else {
    find(x.as<float>());
  }
  return found;
}

}  // namespace rwkvx::cpu
