#pragma once

#include "ops/cuda/gpu.h"
#include "ops/ops.h"
#include "tensor/buffer.h"

namespace rwkvx::cuda {

/// Bytes of a head's rows of a chunk: keys [B, N], values [B, N], and of i8 their scales [2, B].
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

  /// For a row that sees up to `top` earlier chunks. No slots where kv.near_bytes has too little room for
  /// that.
  Slots slots(Gpu& gpu, const KvChunks& kv, int64_t heads, int64_t top);

 private:
  Buffer rows_, chunks_, used_;
  Slots slots_;
};

}  // namespace rwkvx::cuda
