#pragma once

#include "ops/cpu/thread_pool.h"
#include "tensor/buffer.h"

namespace rwkvx::cpu {

/// Rows of weights that lie interleaved: one for each 32-bit lane of the widest vectors.
inline constexpr int64_t kGroup = 16;

/// A quantised matrix [out, in] in the order that dot_few_rows_quantised() reads: groups of 16 rows, the last
/// filled up with zeros. In a group first the bytes of all blocks of its rows, interleaved in units of four
/// bytes (byte 4 (16 u + r) + i is byte 4 u + i of row r's), block after block; then their scales:
///
///   type          bytes interleaved     scales of a block, each of 16 rows
///   q8_0, q4_0    q                     d f16
///   q4_k          q                     d f16, d_min f16, 8 scales u8, 8 minima u8
///   q5_k          high, q               the same
///   q6_k          low, high             d f16, 16 scales i8
///
/// Nothing is rounded: the values are those of the file.
struct PackedBlocks {
  DType type = DType::q8_0;
  int64_t blocks = 0;  ///< of a row
  int64_t scales = 0;  ///< where they begin in a group, bytes
  int64_t group = 0;   ///< bytes, a multiple of 64
  Buffer memory;

  const std::byte* at(int64_t g) const {
    return static_cast<const std::byte*>(memory.view().data()) + g * group;
  }
};

/// Bytes of a block that are interleaved, and of its scales for one row.
struct PackedSizes {
  int64_t interleaved, scales;
};
PackedSizes packed_sizes(DType type);

PackedBlocks pack_blocks(ConstView weight, ThreadPool& pool);

}  // namespace rwkvx::cpu
