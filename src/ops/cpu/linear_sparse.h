#pragma once

#include <algorithm>

#include "ops/cpu/linear_decode.h"
#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"
#include "tensor/blocks.h"

/// Products of few rows that are zero in most places, as squared ReLUs are: the weights of inputs that are
/// zero in all of them are not read. A row's result does not depend on the rows beside it.
namespace rwkvx::cpu {

inline constexpr int64_t kLine = 64;           ///< bytes of the caches' lines
inline constexpr int64_t kPairedOutputs = 32;  ///< among which bf16 weights are paired

/// How a quantised type lies in InputMajor: weights [in][out]; behind them for each part of the inputs scales
/// [out] and minima [out], bytes; then for each block d [out] and d_min [out], f16. Nearly all scales are
/// read, and so they lie in one piece. Every weight is d · scale · q − d_min · minimum with the file's
/// numbers; what a type lacks takes no room.
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
  /// Where these begin, of a matrix of so many inputs, and where it ends.
  constexpr int64_t part_scales_at(int64_t in, int64_t width) const { return in * input(width); }
  constexpr int64_t block_scales_at(int64_t in, int64_t width) const {
    return part_scales_at(in, width) + in / part * part_scales(width);
  }
  constexpr int64_t end(int64_t in, int64_t width) const {
    return block_scales_at(in, width) + in / block * block_scales(width);
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

/// A matrix [out, in] in the order that this needs: the weights of one input after those of another,
/// [in][out]. In bf16, of every 32 outputs the i-th and the (16 + i)-th are neighbours: one 32-bit lane holds
/// both. Quantised ones: BlockLayout.
struct InputMajor {
  DType type = DType::f32;
  int64_t in = 0, out = 0;
  Buffer memory;  ///< bytes

  const std::byte* data() const { return static_cast<const std::byte*>(memory.view().data()); }
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
/// NonZero::rows of x [rows, in].
int64_t non_zero_rows(int64_t rows);
/// Floats of memory that find_non_zero() needs for x [rows, in], a multiple of kPadding.
int64_t non_zero_elements(int64_t rows, int64_t in);
/// Of x [rows, in], rows ≤ kFewRows. `memory` is 64-byte aligned.
NonZero find_non_zero(const ConstView& x, float* memory);
/// How many values of a row are not zero.
int64_t count_non_zero(const ConstView& row);
/// What find_non_zero() lists of one row; there is room for all of it. Returns how many.
int64_t list_non_zero(const ConstView& row, int32_t* indices, float* values);

/// Inputs are summed in so many segments, each by itself, and these in their order: threads share a product
/// without cutting what an input's outputs have in memory into short pieces, and sums do not depend on how
/// many threads there are.
inline constexpr int64_t kSegments = 8;
/// The first input of a segment, 0 … kSegments; whole blocks of the type.
int64_t segment_begin(const InputMajor& w, int64_t segment);

/// Some outputs of a segment.
struct SparsePart {
  int64_t segment, first, outs;  ///< outputs in multiples of 64
};
/// sums[r · w.out + o] = Σ values · weights of the segment's inputs, for each of x.rows rows r and the part's
/// outputs o.
void sum_inputs(const InputMajor& w, const NonZero& x, const SparsePart& part, float* sums);

/// Some inputs of a list, from the begin-th to the end-th, and outputs.
struct ListedPart {
  int64_t begin, end, first, outs;
};
/// sums[r · w.out + o] += values · weights of the part, for quantised weights.
void add_inputs_quantised(const InputMajor& w, const NonZero& x, const ListedPart& part, float* sums);

/// to[o] = Σ sums[s · stride + o] over all segments s, for o below `count`, a multiple of 16.
void add_segments(const float* sums, int64_t stride, int64_t count, float* to);

}  // namespace rwkvx::cpu
