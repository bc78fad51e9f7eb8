#pragma once

#include "ops/cuda/gpu.h"
#include "ops/ops.h"

/// What the backward of chunk attention and the losses of sampled queries know of chunks, and which queries
/// chose which.
namespace rwkvx::cuda {

/// A chunk of one sequence.
struct ChunkRows {
  const void *keys, *values;  // [H, B, N] of its page
  const float* key_sums;      // [H, N]
  int64_t first_row;          // of q
  int rows;                   // that it has: B, but for the last of a sequence
  int index;                  // in its sequence
};

/// The chunks of all sequences of a call, in order of rows. `chunks` lies on the GPU.
struct ChunkTable {
  const ChunkRows* chunks = nullptr;
  int count = 0, chunk_size = 0, heads = 0;
  int most = 0;  // chunks of one sequence
  int64_t rows = 0;
};
/// Asserts that pages hold all rows of each sequence.
ChunkTable upload_chunks(Gpu& gpu, const ChunkAttention& call);

/// Per head the rows that chose a chunk, chunk by chunk, and of a chunk slot by slot of `chosen`, rising.
struct ChunkLists {
  int slots = 0;                // that can hold a chunk
  const int* starts = nullptr;  // [H, chunks · slots + 1]: of a chunk's slot in `rows`
  const int* rows = nullptr;    // [H, R · slots]
  const int* tile_starts =
      nullptr;  // [H, slots, chunks + 1]: in tiles of a slot's rows, begun anew by each chunk
};
/// In scratch memory. `tile`: rows of a tile.
ChunkLists invert_selection(Gpu& gpu, const ChunkTable& table, ConstView chosen, int tile);

}  // namespace rwkvx::cuda
