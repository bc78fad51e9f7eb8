#pragma once

#include <cstdint>

#include "tensor/half.h"

/// Products of tiles: C [16, 16] += A [16, 32] · B [32, 16], A and B in bfloat16, C in float32. A's elements
/// lie as usual, 64 bytes of each row. B's lie in pairs of rows: element (k, n) at [k / 2, n, k % 2] of [16,
/// 16, 2].
namespace rwkvx::cpu {

inline constexpr int64_t kTileRows = 16;                   ///< rows of A and C, columns of B and C
inline constexpr int64_t kTileDepth = 32;                  ///< columns of A, rows of B
inline constexpr int64_t kTileElements = 16 * kTileDepth;  ///< of A or B

inline constexpr int64_t kStripRows = 2 * kTileRows, kStripColumns = 4 * kTileRows;

/// Up to 32 rows of A times a strip of B: c [rows, 32 or 64] = or += a · b.
struct TileStrip {
  const BFloat16* a;  ///< [steps, 2] tiles: for every 32 of its columns, 16 rows and 16 rows
  int64_t row_tiles;  ///< 1 or 2 of them are wanted
  const BFloat16* b;  ///< [panels / 2, steps, 2] tiles: panels of 16 columns, two and two
  int64_t panels;     ///< 2 or 4
  int64_t steps;
  float* c;          ///< [16 · row_tiles, 16 · panels]
  int64_t c_stride;  ///< elements between rows of c
  bool add;
  bool near = false;  ///< a and b are in the first cache: nothing is fetched ahead
};

inline constexpr int64_t kTileQueries = 32;  ///< of attention, two tiles side by side

/// Scores of 32 queries: scores [16 · key_tiles, 32] = keys [16 · key_tiles, 64] · queries.
struct TileScores {
  const BFloat16* keys;  ///< rows of 64, one behind the other
  const BFloat16*
      queries;  ///< [2, 2] tiles: channels 0 to 31 and 32 to 63, each of 16 queries and 16 queries
  int64_t key_tiles;
  float* scores;
};

/// Sums of values: sums [64, 32] += values · weights.
struct TileValues {
  const BFloat16* values;   ///< [steps, 4] tiles: for every 32 keys, 16 channels (rows) after 16 channels
  const BFloat16* weights;  ///< [steps, 2] tiles: for every 32 keys, 16 queries and 16 queries
  int64_t steps;
  float* sums;
};

/// TileFewRows::steps up to which weights are read as one stretch of memory.
inline constexpr int64_t kNarrowSteps = 8;

/// Few rows of x: sums [16 · weight_tiles, rows] = weights · xᵀ, with weights as a file holds them.
struct TileFewRows {
  const BFloat16* weights;  ///< [16 · weight_tiles, 32 · steps]
  int64_t weight_tiles;
  const BFloat16* x;  ///< [16 · steps, rows, 2]: rows of x pair by pair
  int64_t rows;       ///< 1 to 16
  int64_t steps;
  float* sums;
};

/// What multiplies tiles. Between begin() and end() a thread does nothing else with tiles.
struct TileUnit {
  void (*begin)();
  void (*end)();
  void (*multiply)(const TileStrip& strip);
  void (*score)(const TileScores& call);
  void (*add_values)(const TileValues& call);
  void (*few_rows)(const TileFewRows& call);  ///< not between begin() and end()
};

/// The processor's own (AMX), null where it has none or the system does not let this process use it.
const TileUnit* tile_unit();
/// The same in plain C++, to test what is built on it on every machine.
const TileUnit& emulated_tile_unit();

}  // namespace rwkvx::cpu
