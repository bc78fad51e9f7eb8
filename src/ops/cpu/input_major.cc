#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_sparse.h"
#include "tensor/blocks.h"
#include "tensor/half.h"

namespace rwkvx::cpu {
namespace {

float to_float(float x) { return x; }
using rwkvx::to_float;

constexpr int64_t kSquare = 64;  // weights turned at a time: both sides stay in the first cache

/// Where output o of a tile lies.
template <typename T>
int64_t place(int64_t o) {
  if constexpr (!std::is_same_v<T, BFloat16>) return o;
  constexpr int64_t kHalf = kPairedOutputs / 2;
  const int64_t i = o % kPairedOutputs;
  return o - i + 2 * (i % kHalf) + i / kHalf;
}

/// Inputs first … first + kSquare of tile t.
template <typename T>
void turn(const ConstView& weight, const InputMajor& to, int64_t t, int64_t first, std::byte* tile) {
  const int64_t width = to.width(t), last = std::min(to.in, first + kSquare);
  for (int64_t o = 0; o < width; ++o) {
    const T* row = weight.as<T>() + (t * to.tile + o) * to.in;
    T* column = reinterpret_cast<T*>(tile) + place<T>(o);
    for (int64_t i = first; i < last; ++i) column[i * width] = row[i];
  }
}

void turn_q8_0(const ConstView& weight, const InputMajor& to, int64_t t, int64_t first, std::byte* tile) {
  const int64_t width = to.width(t), blocks = to.in / kSmallBlock;
  const int64_t last = std::min(blocks, (first + kSquare) / kSmallBlock);
  const auto* from = static_cast<const BlockQ8_0*>(weight.data());
  for (int64_t o = 0; o < width; ++o) {
    const BlockQ8_0* row = from + (t * to.tile + o) * blocks;
    for (int64_t b = first / kSmallBlock; b < last; ++b) {
      std::byte* block = tile + b * width * static_cast<int64_t>(sizeof(BlockQ8_0));
      for (int64_t i = 0; i < kSmallBlock; ++i) block[i * width + o] = static_cast<std::byte>(row[b].q[i]);
      std::memcpy(block + kSmallBlock * width + 2 * o, &row[b].d, 2);
    }
  }
}

/// f(pointer to the values of x).
template <typename Function>
auto with_values(const ConstView& x, Function f) {
  return x.dtype() == DType::bf16 ? f(x.as<BFloat16>()) : f(x.as<float>());
}

}  // namespace

bool can_be_input_major(const ConstView& weight) {
  const DType type = weight.dtype();
  const bool known = type == DType::f32 || type == DType::bf16 || type == DType::f16 || type == DType::q8_0;
  return known && weight.dim(0) % 64 == 0;
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
  to.memory = Buffer(DType::u8, {static_cast<int64_t>(weight.bytes())});
  auto* memory = static_cast<std::byte*>(to.memory.view().data());
  const int64_t parts = (to.in + kSquare - 1) / kSquare;
  pool.run(to.tiles() * parts, [&](int64_t task, int) {
    const int64_t t = task / parts, first = task % parts * kSquare;
    std::byte* tile = memory + bytes_of(to.type, t * to.tile * to.in);
    switch (to.type) {
      case DType::f32:
        return turn<float>(weight, to, t, first, tile);
      case DType::bf16:
        return turn<BFloat16>(weight, to, t, first, tile);
      case DType::f16:
        return turn<Float16>(weight, to, t, first, tile);
      default:
        return turn_q8_0(weight, to, t, first, tile);
    }
  });
  return to;
}

int64_t count_non_zero(const ConstView& row) {
  return with_values(row, [&](const auto* x) {
    int64_t count = 0;
    for (int64_t i = 0; i < row.elements(); ++i) count += to_float(x[i]) != 0;
    return count;
  });
}

int64_t non_zero_elements(int64_t rows, int64_t in) {
  const auto padded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  return (in * (padded + 1) + kPadding - 1) / kPadding * kPadding;
}

NonZero find_non_zero(const ConstView& x, float* memory) {
  const int64_t rows = x.dim(0), in = x.dim(1);
  const auto padded = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  NonZero found{padded, 0, reinterpret_cast<int32_t*>(memory + padded * in), memory};
  with_values(x, [&](const auto* from) {
    if (rows < padded) std::fill_n(found.values, padded * in, 0.0f);
    for (int64_t i = 0; i < in; ++i) {  // without a branch, which would be guessed wrongly too often
      float* values = found.values + found.count * padded;
      bool any = false;
      for (int64_t r = 0; r < rows; ++r) {
        values[r] = to_float(from[r * in + i]);
        any |= values[r] != 0;
      }
      found.indices[found.count] = static_cast<int32_t>(i);
      found.count += any;
    }
    return 0;
  });
  return found;
}

}  // namespace rwkvx::cpu
