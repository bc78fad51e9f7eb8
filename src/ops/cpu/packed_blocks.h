#pragma once

#include "ops/cpu/thread_pool.h"
#include "tensor/buffer.h"

namespace rwkvx::cpu {

/// Rows of weights that lie interleaved: one for each 32-bit lane of the widest vectors.
inline constexpr int64_t kGroup = 16;

/// Bytes of a block that are interleaved, and of its scales for one row.
struct PackedSizes {
  int64_t interleaved, scales;
};
PackedSizes packed_sizes(DType type);

/// A quantised matrix [out, in] in the order that dot_rows_quantised() reads it, from begin to end:
/// groups of 16 rows, the last filled up with zeros. A group is spans of one block of each row, or two where
/// blocks are small. A span begins with the bytes of its blocks, interleaved in units of four bytes (byte 4
/// (16 u + r) + i is byte 4 u + i of row r's), block after block; then come their scales, up to a multiple of
/// 64 bytes:
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
  Buffer memory;

  /// Blocks of a span.
  static constexpr int64_t span_blocks(DType type) {
    return type == DType::q8_0 || type == DType::q4_0 ? 2 : 1;
  }
  /// Bytes of a span.
  static int64_t span(DType type) {
    const PackedSizes sizes = packed_sizes(type);
    return (span_blocks(type) * (sizes.interleaved + sizes.scales) * kGroup + 63) / 64 * 64;
  }
  /// Bytes of a group.
  int64_t group() const { return (blocks + span_blocks(type) - 1) / span_blocks(type) * span(type); }
};

PackedBlocks pack_blocks(ConstView weight, ThreadPool& pool);

}  // namespace rwkvx::cpu
