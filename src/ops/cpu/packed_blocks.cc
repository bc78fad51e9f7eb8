#include "ops/cpu/packed_blocks.h"

#include <cstring>

#include "base/assert.h"
#include "tensor/blocks.h"
#include "tensor/host_pages.h"

namespace rwkvx::cpu {
namespace {

/// `bytes` of one row into the interleaved units from `to` on.
void interleave(const void* from, int64_t bytes, std::byte* to) {
  const auto* x = static_cast<const std::byte*>(from);
  for (int64_t u = 0; u < bytes / 4; ++u) std::memcpy(to + u * 4 * kGroup, x + 4 * u, 4);
}

template <typename T>
void put(std::byte* scales, int64_t byte, int64_t row, T value) {
  std::memcpy(scales + byte + row * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

/// Row `row` of a group's block: `units` at the row's own column.
void pack(const BlockQ8_0& b, std::byte* units, std::byte* scales, int64_t row) {
  interleave(b.q, sizeof b.q, units);
  put(scales, 0, row, b.d);
}
void pack(const BlockQ4_0& b, std::byte* units, std::byte* scales, int64_t row) {
  interleave(b.q, sizeof b.q, units);
  put(scales, 0, row, b.d);
}

template <typename Block>
void pack_sub_scales(const Block& b, std::byte* scales, int64_t row) {
  put(scales, 0, row, b.d);
  put(scales, 2 * kGroup, row, b.d_min);
  for (int s = 0; s < 8; ++s) {
    put(scales, (4 + s) * kGroup, row, b.scales.sub_scale(s));
    put(scales, (12 + s) * kGroup, row, b.scales.sub_min(s));
  }
}
void pack(const BlockQ4_K& b, std::byte* units, std::byte* scales, int64_t row) {
  interleave(b.q, sizeof b.q, units);
  pack_sub_scales(b, scales, row);
}
void pack(const BlockQ5_K& b, std::byte* units, std::byte* scales, int64_t row) {
  interleave(b.high, sizeof b.high, units);
  interleave(b.q, sizeof b.q, units + sizeof b.high * kGroup);
  pack_sub_scales(b, scales, row);
}
void pack(const BlockQ6_K& b, std::byte* units, std::byte* scales, int64_t row) {
  interleave(b.low, sizeof b.low, units);
  interleave(b.high, sizeof b.high, units + sizeof b.low * kGroup);
  put(scales, 0, row, b.d);
  for (int s = 0; s < 16; ++s) put(scales, (2 + s) * kGroup, row, b.scales[s]);
}

template <typename Block>
void pack_group(ConstView weight, const PackedBlocks& to, int64_t g, std::byte* group) {
  const PackedSizes sizes = packed_sizes(to.type);
  const int64_t together = PackedBlocks::span_blocks(to.type), span = PackedBlocks::span(to.type);
  const int64_t rows = std::min(kGroup, weight.dim(0) - g * kGroup);
  for (int64_t r = 0; r < rows; ++r) {
    const auto* row = static_cast<const Block*>(weight.rows(g * kGroup + r, 1).data());
    for (int64_t b = 0; b < to.blocks; ++b) {
      std::byte* units = group + b / together * span;
      std::byte* scales = units + together * sizes.interleaved * kGroup;
      pack(row[b], units + b % together * sizes.interleaved * kGroup + 4 * r,
           scales + b % together * sizes.scales * kGroup, r);
    }
  }
}

}  // namespace

PackedSizes packed_sizes(DType type) {
  switch (type) {
    case DType::q8_0:
      return {32, 2};
    case DType::q4_0:
      return {16, 2};
    case DType::q4_k:
      return {128, 4 + 16};
    case DType::q5_k:
      return {32 + 128, 4 + 16};
    case DType::q6_k:
      return {128 + 64, 2 + 16};
    default:
      RWKVX_ASSERT(!"a type that is_computable()");
  }
  return {};
}

PackedBlocks pack_blocks(ConstView weight, ThreadPool& pool) {
  PackedBlocks to;
  to.type = weight.dtype();
  to.blocks = weight.dim(1) / info(to.type).block_elements;
  const int64_t groups = (weight.dim(0) + kGroup - 1) / kGroup;
  to.memory = Buffer(DType::u8, {groups * to.group()}, slab_allocator());
  auto* memory = static_cast<std::byte*>(to.memory.view().data());
  pool.run(groups, [&](int64_t g, int) {
    std::byte* group = memory + g * to.group();
    switch (to.type) {
      case DType::q8_0:
        return pack_group<BlockQ8_0>(weight, to, g, group);
      case DType::q4_0:
        return pack_group<BlockQ4_0>(weight, to, g, group);
      case DType::q4_k:
        return pack_group<BlockQ4_K>(weight, to, g, group);
      case DType::q5_k:
        return pack_group<BlockQ5_K>(weight, to, g, group);
      default:
        return pack_group<BlockQ6_K>(weight, to, g, group);
    }
  });
  return to;
}

}  // namespace rwkvx::cpu
