#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_sparse.h"
#include "tensor/blocks.h"
#include "tensor/half.h"
#include "tensor/host_pages.h"
#include "tensor/quantise.h"

namespace rwkvx::cpu {
namespace {

float to_float(float x) { return x; }
using rwkvx::to_float;

bool is_zero(float x) { return std::bit_cast<uint32_t>(x) << 1 == 0; }
bool is_zero(BFloat16 x) { return (x.bits & 0x7fff) == 0; }

// Inputs turned at a time: both sides stay in the first cache.
constexpr int64_t kSquare = 64;
constexpr int64_t kQuantisedSquare = kSuperBlock;  // whole blocks

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

/// q as BlockLayout stores it, of element k of a block.
int stored(const BlockQ8_0& b, int64_t k) { return b.q[k]; }
int stored(const BlockQ4_0& b, int64_t k) { return b.q[k % 16] >> (k < 16 ? 0 : 4) & 15; }
int nibble(const uint8_t* q, int64_t k) { return q[k / 64 * 32 + k % 32] >> (k % 64 < 32 ? 0 : 4) & 15; }
int stored(const BlockQ4_K& b, int64_t k) { return nibble(b.q, k); }
int stored(const BlockQ5_K& b, int64_t k) { return nibble(b.q, k) | (b.high[k % 32] >> k / 32 & 1) << 4; }
int stored(const BlockQ6_K& b, int64_t k) {
  const int64_t half = k / 128, j = k % 128 / 32, i = k % 32;
  const int low = b.low[64 * half + 32 * (j % 2) + i] >> (j < 2 ? 0 : 4) & 15;
  return (low | (b.high[32 * half + i] >> 2 * j & 3) << 4) - 32;
}

/// Output o of a tile: its weight of one input, which begins at `to`. Memory was zero.
template <bool kNibbles>
void put(int q, int64_t o, std::byte* to) {
  if constexpr (kNibbles) {
    const int64_t word = o / 64 * 16 + o % 16, nibble = o % 64 / 16;
    to[2 * word + nibble / 2] |= static_cast<std::byte>(q << 4 * (nibble % 2));
  } else {
    to[o] = static_cast<std::byte>(q);
  }
}

/// Scales and minima of a block's parts, at output o.
template <typename Block>
void put_scales(const Block& from, const BlockLayout& layout, int64_t width, int64_t o, std::byte* block) {
  for (int p = 0; p < layout.parts(); ++p) {
    std::byte* scales = block + p * layout.whole_part(width) + layout.part * layout.input(width) + o;
    if constexpr (requires { from.d_min; }) {
      scales[0] = static_cast<std::byte>(from.scales.sub_scale(p));
      scales[width] = static_cast<std::byte>(from.scales.sub_min(p));
    } else if constexpr (requires { from.scales; }) {
      scales[0] = static_cast<std::byte>(from.scales[p]);
    }
  }
  std::byte* last = block + layout.parts() * layout.whole_part(width) + 2 * o;
  std::memcpy(last, &from.d, 2);
  if constexpr (requires { from.d_min; }) std::memcpy(last + 2 * width, &from.d_min, 2);
}

/// The same for kQuantisedSquare inputs.
template <DType kType, typename Block>
void turn_blocks(const ConstView& weight, const InputMajor& to, int64_t t, int64_t first, std::byte* tile) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const int64_t width = to.width(t), blocks = to.in / kLayout.block;
  const int64_t begin = first / kLayout.block;
  const int64_t end = std::min(to.in, first + kQuantisedSquare) / kLayout.block;
  const auto* from = static_cast<const Block*>(weight.data());
  for (int64_t o = 0; o < width; ++o) {
    const Block* row = from + (t * to.tile + o) * blocks;
    for (int64_t b = begin; b < end; ++b) {
      std::byte* block = tile + b * kLayout.whole_block(width);
      for (int64_t k = 0; k < kLayout.block; ++k) {
        std::byte* part = block + k / kLayout.part * kLayout.whole_part(width);
        put<kLayout.nibbles>(stored(row[b], k), o, part + k % kLayout.part * kLayout.input(width));
      }
      put_scales(row[b], kLayout, width, o, block);
    }
  }
}

void turn_any(const ConstView& weight, const InputMajor& to, int64_t t, int64_t first, std::byte* tile) {
  switch (to.type) {
    case DType::f32:
      return turn<float>(weight, to, t, first, tile);
    case DType::bf16:
      return turn<BFloat16>(weight, to, t, first, tile);
    case DType::f16:
      return turn<Float16>(weight, to, t, first, tile);
    case DType::q4_0:
      return turn_blocks<DType::q4_0, BlockQ4_0>(weight, to, t, first, tile);
    case DType::q4_k:
      return turn_blocks<DType::q4_k, BlockQ4_K>(weight, to, t, first, tile);
    case DType::q5_k:
      return turn_blocks<DType::q5_k, BlockQ5_K>(weight, to, t, first, tile);
    case DType::q6_k:
      return turn_blocks<DType::q6_k, BlockQ6_K>(weight, to, t, first, tile);
    default:
      return turn_blocks<DType::q8_0, BlockQ8_0>(weight, to, t, first, tile);
  }
}

/// f(pointer to the values of x).
template <typename Function>
auto with_values(const ConstView& x, Function f) {
  return x.dtype() == DType::bf16 ? f(x.as<BFloat16>()) : f(x.as<float>());
}

/// `rows` is known where it is 1, the most frequent case.
template <typename T>
int64_t list_non_zero(const T* from, int64_t rows, const NonZero& to, int64_t in) {
  int64_t count = 0;
  for (int64_t i = 0; i < in; ++i) {  // without a branch, which would be guessed wrongly too often
    float* values = to.values + count * to.rows;
    bool zero = true;
    for (int64_t r = 0; r < rows; ++r) {
      values[r] = to_float(from[r * in + i]);
      zero &= is_zero(from[r * in + i]);
    }
    to.indices[count] = static_cast<int32_t>(i);
    count += zero ? 0 : 1;
  }
  return count;
}

}  // namespace

bool can_be_input_major(const ConstView& weight) {
  const DType type = weight.dtype();
  const bool known = type == DType::f32 || type == DType::bf16 || type == DType::f16 || is_computable(type);
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
  to.memory = Buffer(DType::u8, {to.bytes(to.out)}, slab_allocator());
  auto* memory = static_cast<std::byte*>(to.memory.view().data());
  const int64_t step = is_quantised(to.type) ? kQuantisedSquare : kSquare;
  const int64_t parts = (to.in + step - 1) / step;
  pool.run(to.tiles() * parts, [&](int64_t task, int) {
    const int64_t t = task / parts;
    turn_any(weight, to, t, task % parts * step, memory + to.bytes(t * to.tile));
  });
  return to;
}

int64_t count_non_zero(const ConstView& row) {
  const int64_t elements = row.elements();
  return with_values(row, [&](const auto* x) {
    int32_t count = 0;  // as wide as what is compared, or the compiler makes no vectors of it
    for (int64_t i = 0; i < elements; ++i) count += is_zero(x[i]) ? 0 : 1;
    return int64_t{count};
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
  if (rows < padded) std::fill_n(found.values, padded * in, 0.0f);
  found.count = with_values(x, [&](const auto* from) {
    if (rows == 1) return list_non_zero(from, 1, {1, 0, found.indices, found.values}, in);
    return list_non_zero(from, rows, found, in);
  });
  return found;
}

}  // namespace rwkvx::cpu
