#pragma once

#include <algorithm>

#include "ops/cpu/linear_decode.h"
#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"
#include "tensor/blocks.h"

/// Products of few rows that are zero in most places, as squared ReLUs are: the weights of inputs that are
/// zero in all of them are not read. A row's result does not depend on the rows beside it.
namespace rwkvx::cpu {

inline constexpr int64_t kMostTile = 512;      ///< outputs
inline constexpr int64_t kPairedOutputs = 32;  ///< among which bf16 weights are paired

/// How a quantised type lies in InputMajor. A tile is blocks of inputs; a block is parts and then d [tile]
/// and d_min [tile], f16; a part is weights [part][tile], scales [tile] and minima [tile], bytes. Every
/// weight is d · scale · q − d_min · minimum with the file's numbers; what a type lacks takes no room.
struct BlockLayout {
  int64_t block, part;  ///< inputs
  bool nibbles;         ///< q without a sign, of 64 outputs the (16 j + i)-th in bits 4 j of 16-bit word i
  int offset;           ///< to take from what is stored
  bool scales, minima;

  constexpr int64_t parts() const { return block / part; }
  /// Bytes for `width` outputs.
  constexpr int64_t input(int64_t width) const { return nibbles ? width / 2 : width; }
  constexpr int64_t part_scales(int64_t width) const { return (scales + minima) * width; }
  constexpr int64_t block_scales(int64_t width) const { return (minima ? 4 : 2) * width; }
  constexpr int64_t whole_part(int64_t width) const { return part * input(width) + part_scales(width); }
  constexpr int64_t whole_block(int64_t width) const {
    return parts() * whole_part(width) + block_scales(width);
  }
};

constexpr BlockLayout block_layout(DType type) {
  switch (type) {
    case DType::q4_0:
      return {kSmallBlock, kSmallBlock, true, 8, false, false};
    case DType::q4_k:
      return {kSuperBlock, kSmallBlock, true, 0, true, true};
    case DType::q5_k:
      return {kSuperBlock, kSmallBlock, false, 0, true, true};
    case DType::q6_k:
      return {kSuperBlock, kSmallBlock / 2, false, 0, true, false};
    default:
      return {kSmallBlock, kSmallBlock, false, 0, false, false};  // q8_0
  }
}

/// A matrix [out, in] in the order that this needs: tiles of outputs, in each the weights of one input after
/// those of another, [out / tile][in][tile] (the last tile may be narrower, and is as wide as it is). In
/// bf16, of every 32 outputs the i-th and the (16 + i)-th are neighbours: one 32-bit lane holds both.
/// Quantised ones: BlockLayout.
struct InputMajor {
  DType type = DType::f32;
  int64_t in = 0, out = 0, tile = 0;
  Buffer memory;  ///< bytes

  int64_t tiles() const { return (out + tile - 1) / tile; }
  int64_t width(int64_t t) const { return std::min(tile, out - t * tile); }
  /// Bytes of `width` outputs.
  int64_t bytes(int64_t width) const {
    if (!is_quantised(type)) return bytes_of(type, width * in);
    const BlockLayout layout = block_layout(type);
    return in / layout.block * layout.whole_block(width);
  }
  const std::byte* at(int64_t t) const {
    return static_cast<const std::byte*>(memory.view().data()) + bytes(t * tile);
  }
};

/// False where the type is not one to compute with, or outputs are no multiple of 64.
bool can_be_input_major(const ConstView& weight);
InputMajor input_major(const ConstView& weight, ThreadPool& pool);

/// The inputs that are not zero in all rows (NaN is not zero), in order.
struct NonZero {
  int64_t rows = 0;            ///< 1, 2, 4 or 8: those of x, and zeros
  int64_t count = 0;           ///< of inputs
  int32_t* indices = nullptr;  ///< [in]
  float* values = nullptr;     ///< [in, rows]
};
/// Floats of memory that find_non_zero() needs, a multiple of kPadding.
int64_t non_zero_elements(int64_t rows, int64_t in);
/// Of x [rows, in], rows ≤ kFewRows. `memory` is 64-byte aligned.
NonZero find_non_zero(const ConstView& x, float* memory);
/// How many values of a row are not zero.
int64_t count_non_zero(const ConstView& row);

/// sums[r · kMostTile + o] = Σ values · weights for each of x.rows rows and the tile's outputs.
void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums);
/// The same, of quantised weights only.
void sum_inputs_quantised(const InputMajor& w, int64_t tile, const NonZero& x, float* sums);

}  // namespace rwkvx::cpu
