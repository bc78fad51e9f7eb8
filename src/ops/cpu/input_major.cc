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

bool is_zero(float x) { return std::bit_cast<uint32_t>(x) << 1 == 0; }
bool is_zero(BFloat16 x) { return (x.bits & 0x7fff) == 0; }

// Inputs and outputs turned at a time, in memory of a thread's own: those of one input lie so far apart in
// the whole that they would fall into the same few places of a cache.
constexpr int64_t kSquare = 64;
constexpr int64_t kQuantisedSquare = kSuperBlock;  // inputs: whole blocks

/// Where output o of a square lies.
template <typename T>
int64_t place(int64_t o) {
  if constexpr (!std::is_same_v<T, BFloat16>) return o;
  constexpr int64_t kHalf = kPairedOutputs / 2;
  const int64_t i = o % kPairedOutputs;
  return o - i + 2 * (i % kHalf) + i / kHalf;
}

/// Inputs i … and outputs o …, a square each or what is left of the inputs.
template <typename T>
void turn(const ConstView& weight, InputMajor& to, int64_t i, int64_t o) {
  T square[kSquare * kSquare];
  const int64_t inputs = std::min(kSquare, to.in - i);
  for (int64_t n = 0; n < kSquare; ++n) {
    const T* row = weight.as<T>() + (o + n) * to.in + i;
    for (int64_t k = 0; k < inputs; ++k) square[k * kSquare + place<T>(n)] = row[k];
  }
  T* columns = static_cast<T*>(to.memory.view().data()) + i * to.out + o;
  for (int64_t k = 0; k < inputs; ++k)
    std::memcpy(columns + k * to.out, square + k * kSquare, sizeof(T) * kSquare);
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

/// Output o of a square: its weight of one input, which begins at `to`. Memory was zero.
template <bool kNibbles>
void put(int q, int64_t o, std::byte* to) {
  if constexpr (kNibbles) {
    const int64_t word = o / 64 * 16 + o % 16, nibble = o % 64 / 16;
    to[2 * word + nibble / 2] |= static_cast<std::byte>(q << 4 * (nibble % 2));
  } else {
    to[o] = static_cast<std::byte>(q);
  }
}

/// Scales and minima of a block's parts, at output o of a square.
template <typename Block>
void put_scales(const Block& from, const BlockLayout& layout, int64_t o, std::byte* block) {
  for (int p = 0; p < layout.parts(); ++p) {
    std::byte* scales =
        block + layout.part_scales_at(layout.block, kSquare) + p * layout.part_scales(kSquare) + o;
    if constexpr (requires { from.d_min; }) {
      scales[0] = static_cast<std::byte>(from.scales.sub_scale(p));
      scales[kSquare] = static_cast<std::byte>(from.scales.sub_min(p));
    } else if constexpr (requires { from.scales; }) {
      scales[0] = static_cast<std::byte>(from.scales[p]);
    }
  }
  std::byte* last = block + layout.block_scales_at(layout.block, kSquare) + 2 * o;
  std::memcpy(last, &from.d, 2);
  if constexpr (requires { from.d_min; }) std::memcpy(last + 2 * kSquare, &from.d_min, 2);
}

/// Block b of a square's outputs to where it belongs, from output o on: the same lines, only longer.
void copy_block(const std::byte* square, const BlockLayout& layout, int64_t b, int64_t o, InputMajor& w) {
  auto* memory = static_cast<std::byte*>(w.memory.view().data());
  const auto copy_lines = [&](int64_t lines, auto bytes_of, int64_t begin) {
    std::byte* to = memory + begin + b * lines * bytes_of(w.out) + bytes_of(o);
    for (int64_t i = 0; i < lines; ++i, square += bytes_of(kSquare), to += bytes_of(w.out)) {
      std::memcpy(to, square, static_cast<size_t>(bytes_of(kSquare)));
    }
  };
  copy_lines(
      layout.block, [&](int64_t outs) { return layout.input(outs); }, 0);
  copy_lines(
      layout.parts() * (layout.scales + layout.minima), [](int64_t outs) { return outs; },
      layout.part_scales_at(w.in, w.out));
  copy_lines(
      layout.minima ? 2 : 1, [](int64_t outs) { return 2 * outs; }, layout.block_scales_at(w.in, w.out));
}

/// The same as turn(), for kQuantisedSquare inputs.
template <DType kType, typename Block>
void turn_blocks(const ConstView& weight, InputMajor& to, int64_t i, int64_t o) {
  constexpr BlockLayout kLayout = block_layout(kType);
  const int64_t row_blocks = to.in / kLayout.block;
  const int64_t end = std::min(to.in, i + kQuantisedSquare) / kLayout.block;
  const auto* from = static_cast<const Block*>(weight.data());
  for (int64_t b = i / kLayout.block; b < end; ++b) {
    std::byte square[kLayout.end(kLayout.block, kSquare)] = {};
    for (int64_t n = 0; n < kSquare; ++n) {
      const Block& block = from[(o + n) * row_blocks + b];
      for (int64_t k = 0; k < kLayout.block; ++k) {
        put<kLayout.nibbles>(stored(block, k), n, square + k * kLayout.input(kSquare));
      }
      put_scales(block, kLayout, n, square);
    }
    copy_block(square, kLayout, b, o, to);
  }
}

void turn_any(const ConstView& weight, InputMajor& to, int64_t i, int64_t o) {
  switch (to.type) {
    case DType::f32:
      return turn<float>(weight, to, i, o);
    case DType::bf16:
      return turn<BFloat16>(weight, to, i, o);
    case DType::f16:
      return turn<Float16>(weight, to, i, o);
    case DType::q4_0:
      return turn_blocks<DType::q4_0, BlockQ4_0>(weight, to, i, o);
    case DType::q4_k:
      return turn_blocks<DType::q4_k, BlockQ4_K>(weight, to, i, o);
    case DType::q5_k:
      return turn_blocks<DType::q5_k, BlockQ5_K>(weight, to, i, o);
    case DType::q6_k:
      return turn_blocks<DType::q6_k, BlockQ6_K>(weight, to, i, o);
    default:
      return turn_blocks<DType::q8_0, BlockQ8_0>(weight, to, i, o);
  }
}

/// f(pointer to the values of x).
template <typename Function>
auto with_values(const ConstView& x, Function f) {
  return x.dtype() == DType::bf16 ? f(x.as<BFloat16>()) : f(x.as<float>());
}

template <typename T>
int64_t list_rows(const T* from, int64_t rows, const NonZero& to, int64_t in) {
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
  return known && weight.dim(0) % kSquare == 0;
}

InputMajor input_major(const ConstView& weight, ThreadPool& pool) {
  RWKVX_ASSERT(can_be_input_major(weight));
  InputMajor to;
  to.type = weight.dtype();
  to.out = weight.dim(0);
  to.in = weight.dim(1);
  int64_t bytes = bytes_of(to.type, to.in * to.out);
  if (is_quantised(to.type)) {
    bytes = block_layout(to.type).end(to.in, to.out);
  }
  to.memory = Buffer(DType::u8, {bytes}, slab_allocator());
  const int64_t step = is_quantised(to.type) ? kQuantisedSquare : kSquare;
  const int64_t squares = to.out / kSquare;
  pool.run((to.in + step - 1) / step * squares,
           [&](int64_t task, int) { turn_any(weight, to, task / squares * step, task % squares * kSquare); });
  return to;
}

int64_t segment_begin(const InputMajor& w, int64_t segment) {
  const int64_t block = is_quantised(w.type) ? block_layout(w.type).block : 1;
  return w.in / block * segment / kSegments * block;
}

int64_t count_non_zero(const ConstView& row) {
  const int64_t elements = row.elements();
  return with_values(row, [&](const auto* x) {
    int32_t count = 0;  // as wide as what is compared, or the compiler makes no vectors of it
    for (int64_t i = 0; i < elements; ++i) count += is_zero(x[i]) ? 0 : 1;
    return int64_t{count};
  });
}

int64_t non_zero_rows(int64_t rows) {
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

int64_t non_zero_elements(int64_t rows, int64_t in) {
  return (in * (non_zero_rows(rows) + 1) + kPadding - 1) / kPadding * kPadding;
}

NonZero find_non_zero(const ConstView& x, float* memory) {
  const int64_t rows = x.dim(0), in = x.dim(1), padded = non_zero_rows(rows);
  NonZero found{padded, 0, reinterpret_cast<int32_t*>(memory + padded * in), memory};
  if (rows < padded) std::fill_n(found.values, padded * in, 0.0f);
  found.count = rows == 1
                    ? list_non_zero(x, found.indices, found.values)
                    : with_values(x, [&](const auto* from) { return list_rows(from, rows, found, in); });
  return found;
}

}  // namespace rwkvx::cpu
