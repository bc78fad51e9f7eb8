#include "ops/cuda/near_chunks.h"

#include <algorithm>

#include "base/error.h"

namespace rwkvx::cuda {

int64_t row_bytes_of_head(int64_t chunk_size, DType kv) {
  return static_cast<int64_t>(bytes_of(kv, chunk_size * kHeadSize));
}

int64_t chunk_bytes_of_head(int64_t chunk_size, DType kv) {
  const int64_t scales = kv == DType::i8 ? 2 * chunk_size * static_cast<int64_t>(sizeof(float)) : 0;
  return (2 * row_bytes_of_head(chunk_size, kv) + scales + 15) / 16 * 16;
}

NearChunks::Slots NearChunks::slots(Gpu& gpu, const KvChunks& kv, int64_t heads, int64_t choices) {
  const int64_t bytes = chunk_bytes_of_head(kv.chunk_size, kv.dtype);
  // Twice what is seen at once, so that what is seen next as well may stay.
  const int64_t least = 2 * choices;
  int64_t wanted = static_cast<int64_t>(kv.near_bytes) / (heads * bytes);
  if (kv.far_mapped) {  // otherwise few rows have everything brought
    wanted = std::max(wanted, std::min(least, gpu.memory_bytes() / 16 / (heads * bytes)));
  }
  const int64_t most = std::min({wanted, most_, int64_t{1} << 20});
  if (kv.far == 0 || choices > kMostChoices || most < least) return {};
  if (slots_.count < std::min(most, std::max(kv.far, least))) {
    make_room(gpu, heads, bytes, least, std::min(most, std::max(2 * kv.far, least)));
    if (slots_.count == 0) return {};
  }
  ++slots_.now;
  return slots_;
}

void NearChunks::make_room(Gpu& gpu, int64_t heads, int64_t bytes, int64_t least, int64_t count) {
  slots_ = {};
  rows_.reset(), chunks_.reset(), used_.reset();
  // Does without where memory is short: everything can be read where it lies.
  for (; count >= least; count /= 2) {
    try {
      rows_ = Buffer(DType::u8, {heads * count * bytes}, gpu.allocator());
      chunks_ = Buffer(DType::i32, {heads, count}, gpu.allocator());
      used_ = Buffer(DType::i32, {heads, count}, gpu.allocator());
    } catch (const Error&) {
      rows_.reset(), chunks_.reset();
      most_ = count / 2;
      continue;
    }
    slots_ = {static_cast<std::byte*>(rows_.view().data()),
              chunks_.as<int32_t>(),
              used_.as<int32_t>(),
              bytes,
              static_cast<int32_t>(count),
              0};
    return;
  }
}

}  // namespace rwkvx::cuda
