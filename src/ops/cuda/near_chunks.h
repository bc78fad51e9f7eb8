#pragma once

#include <cstdint>

#include "ops/cuda/gpu.h"
#include "ops/ops.h"
#include "tensor/buffer.h"

namespace rwkvx::cuda {

/// Bytes of a head's keys of a chunk, or of its values.
int64_t row_bytes_of_head(int64_t chunk_size, DType kv);
/// Of all its rows of a chunk, a multiple of 16: keys [B, N], values [B, N], and of i8 their scales [2, B].
int64_t chunk_bytes_of_head(int64_t chunk_size, DType kv);

/// Copies of far chunks that were read lately, for each head by itself, beside a store.
class NearChunks {
 public:
  /// What kernels take. Slot i of head h: `rows` + (h · slots + i) · slot_bytes.
  struct Slots {
    std::byte* rows = nullptr;
    int32_t* chunks = nullptr;  // [H, slots]: number of the chunk that is there, and 1; 0: none
    int32_t* used = nullptr;    // [H, slots]: at what time
    int64_t slot_bytes = 0;
    int32_t count = 0, now = 0;
  };

  static constexpr int64_t kMostChoices = 256;

  /// For rows that see up to `choices` earlier chunks together. No slots where kv.near_bytes, or the GPU's
  /// memory, has too little room for that.
  Slots slots(Gpu& gpu, const KvChunks& kv, int64_t heads, int64_t choices);

 private:
  /// `count` slots, or fewer but `least`, or none.
  void make_room(Gpu& gpu, int64_t heads, int64_t bytes, int64_t least, int64_t count);

  int64_t most_ = INT64_MAX;  // what there was memory for
  Buffer rows_, chunks_, used_;
  Slots slots_;
};

}  // namespace rwkvx::cuda
