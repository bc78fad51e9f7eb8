#pragma once

#include "ops/cuda/gpu.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/sequences.h"
#include "ops/cuda/types.h"

/// What the kernels of chunk attention share.
namespace rwkvx::cuda {

/// Consecutive rows of one sequence: all of them, or those of a slice.
struct Piece {
  Kv kv;
  int64_t row = 0;       // the first, in the call
  int64_t position = 0;  // its token's
  int32_t rows = 0;
  int32_t lists = 0;  // chunks of the pieces before
  int32_t dense = 0;  // every row sees all earlier chunks
  int32_t tiles = 0;  // query tiles of the pieces before
  // For the host: the store, if its far chunks are in a mapped file, which kernels cannot read.
  const KvChunks* mapped = nullptr;

  __host__ __device__ int32_t chunk_size() const { return static_cast<int32_t>(kv.chunk_size); }
  /// Chunks that rows of this piece are in or behind.
  __host__ __device__ int32_t chunks() const {
    return static_cast<int32_t>((position + rows - 1) / kv.chunk_size) + 1;
  }
};

/// Consecutive rows of a call, those of one launch.
struct Pieces {
  int32_t count = 0;
  Piece of[kSequences];
  __host__ __device__ int64_t first_row() const { return of[0].row; }
  int64_t rows() const { return of[count - 1].row + of[count - 1].rows - of[0].row; }
};

/// `row` counts from the first of the launch.
__device__ __forceinline__ const Piece& piece_of_row(const Pieces& pieces, int64_t row) {
  int s = 0;
  while (s + 1 < pieces.count && row >= pieces.of[s + 1].row - pieces.of[0].row) ++s;
  return pieces.of[s];
}

/// Where a head's rows of a chunk lie: keys [B, N], values [B, N], and of i8 their scales [B].
struct HeadRows {
  const void *keys, *values;
  const float *key_scales, *value_scales;
};

/// Everything the kernels read and write; rows count from the first of the launch.
struct Attend {
  const float* q;  // [R, C]
  int32_t heads;
  int32_t top;      // earlier chunks that a row sees, at most
  int32_t* chosen;  // [R, H, stride], or null: nobody wants it
  int64_t stride;   // ≥ top where a piece is not dense
  // [R, H, stride] or null: copies of the chosen chunks; keys are null where there is none
  const HeadRows* near;
  float* lse;  // [R, H] or null
  void* y;     // [R, C]
  bool y_bf16;
  int32_t first_head = 0, some_heads = 0;  // for AttendByRow: those that are attended to; 0: all
};

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kScoreScale = 0.125f * kLog2E;  // 1 / √N, for exp2

__device__ __forceinline__ int32_t chunks_seen(const Attend& a, const Piece& piece, int32_t own) {
  return piece.dense != 0 || own < a.top ? own : a.top;
}

/// Writes a.chosen, for each row and head by itself: any number of chunks, any top_k.
void choose_by_row(Gpu& gpu, const Pieces& pieces, const Attend& a, int32_t* tickets);

/// Writes a.chosen, where anybody wants it, for many rows.
void choose_chunks(Gpu& gpu, const Pieces& pieces, const Attend& a);

/// Attends to what a.chosen says, with bfloat16 products. Fills in pieces' tiles and lists.
void attend_by_chunk(Gpu& gpu, Pieces& pieces, const Attend& a, DType kv);
bool can_attend_by_chunk(const Pieces& pieces, DType kv);

/// Attends to what a.chosen says, each row and head by itself, in float32, from whatever type: for few rows.
/// How the work is split has to be known before chunks are chosen.
class AttendByRow {
 public:
  AttendByRow(Gpu& gpu, const Pieces& pieces, const Attend& a, DType kv);
  /// Writes a.chosen, where anybody wants it.
  void choose(const Attend& a) const;
  /// To pieces that lie like those of the constructor, perhaps elsewhere.
  void attend(const Attend& a, const Pieces& pieces) const;

 private:
  Gpu& gpu_;
  const Pieces& pieces_;
  DType kv_;
  int64_t all_, share_, splits_;
  int32_t* tickets_;
};

}  // namespace rwkvx::cuda
