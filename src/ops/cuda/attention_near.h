#pragma once

#include "ops/cuda/attention_parts.h"
#include "ops/cuda/near_chunks.h"

/// Chunks that lie in the host's memory or in a mapped file (KvChunks::far), brought near before attention
/// reads them: for few rows those that were chosen, which are kept for the rows to come; for many rows all of
/// some heads.
namespace rwkvx::cuda {

/// Brings what a.chosen says near, and sets a.near. `slots`: one for each piece, of few rows.
void bring_near(Gpu& gpu, const Pieces& pieces, Attend& a, std::span<const NearChunks::Slots> slots,
                DType kv);

/// Copies of the far chunks of all pieces, of some heads at a time, in a 16th of the GPU's memory.
class Staging {
 public:
  /// Of at most `heads` heads. One lives at a time.
  Staging(Gpu& gpu, const Pieces& pieces, int64_t heads, DType kv);
  int64_t heads() const { return heads_; }
  /// The pieces with heads first … first + count − 1 of their far chunks near.
  Pieces bring(int32_t first, int32_t count);

 private:
  /// One piece's chunks to `rows`, and its pages to `table`.
  void bring_by_kernel(const Piece& piece, int32_t first, int32_t count, std::byte* rows, KvPage* table);
  void bring_by_host(const Piece& piece, int32_t first, int32_t count, std::byte* rows, KvPage* table);

  Gpu& gpu_;
  const Pieces& pieces_;
  DType kv_;
  int64_t heads_ = 0, far_ = 0;
  std::byte* rows_ = nullptr;
  KvPage* tables_ = nullptr;
};

}  // namespace rwkvx::cuda
