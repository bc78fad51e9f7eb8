#pragma once

#include "ops/cpu/packed_blocks.h"
#include "ops/cpu/tiles.h"
#include "tensor/view.h"

/// Weights in the order of a product's second matrix: strips of 64 outputs as TileStrip::b wants them.
namespace rwkvx::cpu {

/// A part of a weight [out, in]: `steps` · 32 inputs from `input` on, a multiple of 256, of 64 outputs from
/// `first` on, a multiple of 64. What lies behind the last output or input is zero.
struct StripOf {
  ConstView weight;
  const PackedBlocks* blocks;  ///< of a quantised weight; may be null
  int64_t first, input, steps;
};

/// Parts that add up to a weight of this type, all but the last bit of bfloat16 for what is quantised: 2 for
/// f16 and 1 for others.
int64_t strip_parts(DType type);

/// Part `part` of the strip's weights, rounded to bfloat16, to `to` as TileStrip::b.
using FillStrip = void (*)(const StripOf& strip, int64_t part, BFloat16* to);
/// For all processors, from the file's weights.
void fill_strip_plain(const StripOf& strip, int64_t part, BFloat16* to);
/// The fastest that this processor has.
FillStrip fill_strip();

}  // namespace rwkvx::cpu
