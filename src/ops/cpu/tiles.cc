#include "ops/cpu/tiles.h"

#include "hwy/targets.h"
#include "ops/cpu/linear_prefill.h"
#include "ops/cpu/prefetch.h"

#if HWY_ARCH_X86 && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RWKVX_AMX __attribute__((target("amx-tile,amx-bf16")))
#endif

namespace rwkvx::cpu {

namespace {

void nothing() {}

/// Σ over the 32 of a tile's depth: row r of a, rows `stride` apart, times column n of b.
float dot(const BFloat16* a, int64_t stride, int64_t r, const BFloat16* b, int64_t n) {
  float sum = 0;
  for (int64_t k = 0; k < kTileDepth; ++k) {
    sum += to_float(a[r * stride + k]) * to_float(b[k / 2 * kTileDepth + n * 2 + k % 2]);
  }
  return sum;
}

void multiply_emulated(const TileStrip& s) {
  for (int64_t r = 0; r < s.row_tiles * kTileRows; ++r) {
    for (int64_t n = 0; n < s.panels * kTileRows; ++n) {
      float& c = s.c[r * s.c_stride + n];
      float sum = s.add ? c : 0.0f;
      for (int64_t step = 0; step < s.steps; ++step) {
        sum += dot(s.a + (2 * step + r / 16) * kTileElements, kTileDepth, r % 16,
                   s.b + ((n / 32 * s.steps + step) * 2 + n / 16 % 2) * kTileElements, n % 16);
      }
      c = sum;
    }
  }
}

void score_emulated(const TileScores& s) {
  for (int64_t key = 0; key < s.key_tiles * kTileRows; ++key) {
    for (int64_t query = 0; query < kTileQueries; ++query) {
      const BFloat16* q = s.queries + query / 16 * kTileElements;
      s.scores[key * kTileQueries + query] =
          dot(s.keys, 64, key, q, query % 16) + dot(s.keys + 32, 64, key, q + 2 * kTileElements, query % 16);
    }
  }
}

void add_values_emulated(const TileValues& s) {
  for (int64_t n = 0; n < 64; ++n) {
    for (int64_t query = 0; query < kTileQueries; ++query) {
      float& sum = s.sums[n * kTileQueries + query];
      for (int64_t step = 0; step < s.steps; ++step) {
        sum += dot(s.values + (step * 4 + n / 16) * kTileElements, kTileDepth, n % 16,
                   s.weights + (step * 2 + query / 16) * kTileElements, query % 16);
      }
    }
  }
}

void few_rows_emulated(const TileFewRows& s) {
  const int64_t in = s.steps * kTileDepth;
  for (int64_t o = 0; o < s.weight_tiles * kTileRows; ++o) {
    for (int64_t r = 0; r < s.rows; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < in; ++i) {
        sum += to_float(s.weights[o * in + i]) * to_float(s.x[(i / 2 * s.rows + r) * 2 + i % 2]);
      }
      s.sums[o * s.rows + r] = sum;
    }
  }
}

}  // namespace

const TileUnit& emulated_tile_unit() {
  static constexpr TileUnit unit{
      nothing, nothing, multiply_emulated, score_emulated, add_values_emulated, few_rows_emulated};
  return unit;
}

#ifdef RWKVX_AMX

namespace {

struct alignas(64) TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

RWKVX_AMX void begin_amx() {
  static const TileConfiguration configuration;
  _tile_loadconfig(&configuration);
}
RWKVX_AMX void end_amx() { _tile_release(); }

/// How many steps ahead the tiles are fetched into the first cache. By itself the processor has them in time
/// only while nothing else runs on the core's other thread.
constexpr int64_t kStepsAhead = 2;

/// The 16 lines of a tile.
RWKVX_AMX inline void fetch_tile(const BFloat16* tile) {
#pragma GCC unroll 16
  for (int64_t line = 0; line < kTileRows; ++line) __builtin_prefetch(tile + line * kTileDepth, 0, 3);
}

// Registers have to be literals. In a product: C of two row tiles and two panels in 0 to 3, A of two row
// tiles in 4 and 5, B of two panels in 6 and 7.

/// C, rows `stride` elements apart. Its second row tile is there with kTwoRows.
template <bool kTwoRows>
RWKVX_AMX inline void load_results(const float* c, int64_t stride) {
  const float* next = c + kTileRows * stride;
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_loadd(0, c, bytes);
  _tile_loadd(1, c + kTileRows, bytes);
  if (kTwoRows) {
    _tile_loadd(2, next, bytes);
    _tile_loadd(3, next + kTileRows, bytes);
  }
}
template <bool kTwoRows>
RWKVX_AMX inline void store_results(float* c, int64_t stride) {
  float* next = c + kTileRows * stride;
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, c, bytes);
  _tile_stored(1, c + kTileRows, bytes);
  if (kTwoRows) {
    _tile_stored(2, next, bytes);
    _tile_stored(3, next + kTileRows, bytes);
  }
}

/// Two row tiles (or one) by two panels. Compilers do not know that tile loads read memory.
template <bool kTwoRows, bool kNear>
RWKVX_AMX void multiply_two_panels(const TileStrip& s, const BFloat16* b, float* c) {
  constexpr int64_t kRow = kTileDepth * sizeof(BFloat16);
  asm volatile("" ::: "memory");
  if (s.add) {
    load_results<kTwoRows>(c, s.c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const BFloat16* a = s.a;
  for (int64_t step = 0; step < s.steps; ++step, a += 2 * kTileElements, b += 2 * kTileElements) {
    constexpr int64_t kAhead = 2 * kStepsAhead * kTileElements;
    _tile_loadd(4, a, kRow);
    _tile_loadd(6, b, kRow);
    if (!kNear) fetch_tile(a + kAhead);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b + kTileElements, kRow);
    if (!kNear) fetch_tile(b + kAhead);
    _tile_dpbf16ps(1, 4, 7);
    if (kTwoRows) {
      _tile_loadd(5, a + kTileElements, kRow);
      if (!kNear) fetch_tile(a + kAhead + kTileElements);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (!kNear) fetch_tile(b + kAhead + kTileElements);
    if (kTwoRows) _tile_dpbf16ps(3, 5, 7);
  }
  store_results<kTwoRows>(c, s.c_stride);
  asm volatile("" ::: "memory");
}

void multiply_amx(const TileStrip& s) {
  for (int64_t panel = 0; panel < s.panels; panel += 2) {
    const BFloat16* b = s.b + panel * s.steps * kTileElements;
    float* c = s.c + panel * kTileRows;
    const bool two = s.row_tiles == 2;
    if (s.near) {
      two ? multiply_two_panels<true, true>(s, b, c) : multiply_two_panels<false, true>(s, b, c);
    } else {
      two ? multiply_two_panels<true, false>(s, b, c) : multiply_two_panels<false, false>(s, b, c);
    }
  }
}

RWKVX_AMX void score_amx(const TileScores& s) {
  constexpr int64_t kKeyRow = 64 * sizeof(BFloat16), kScoreRow = kTileQueries * sizeof(float), kRow = 64;
  asm volatile("" ::: "memory");
  _tile_loadd(4, s.queries, kRow);
  _tile_loadd(5, s.queries + kTileElements, kRow);
  _tile_loadd(6, s.queries + 2 * kTileElements, kRow);
  _tile_loadd(7, s.queries + 3 * kTileElements, kRow);
  const BFloat16* keys = s.keys;
  float* scores = s.scores;
  for (int64_t tile = 0; tile < s.key_tiles;
       ++tile, keys += kTileRows * 64, scores += kTileRows * kTileQueries) {
    _tile_loadd(2, keys, kKeyRow);
    _tile_zero(0);
    _tile_dpbf16ps(0, 2, 4);
    _tile_zero(1);
    _tile_dpbf16ps(1, 2, 5);
    _tile_loadd(3, keys + kTileDepth, kKeyRow);
    _tile_dpbf16ps(0, 3, 6);
    _tile_dpbf16ps(1, 3, 7);
    _tile_stored(0, scores, kScoreRow);
    _tile_stored(1, scores + kTileRows, kScoreRow);
  }
  asm volatile("" ::: "memory");
}

RWKVX_AMX void add_values_amx(const TileValues& s) {
  constexpr int64_t kRow = 64;
  asm volatile("" ::: "memory");
  for (int64_t half = 0; half < 2; ++half) {
    float* sums = s.sums + half * 32 * kTileQueries;
    load_results<true>(sums, kTileQueries);
    const BFloat16 *a = s.values + 2 * half * kTileElements, *b = s.weights;
    for (int64_t step = 0; step < s.steps; ++step, a += 4 * kTileElements, b += 2 * kTileElements) {
      _tile_loadd(4, a, kRow);
      _tile_loadd(6, b, kRow);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + kTileElements, kRow);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + kTileElements, kRow);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    store_results<true>(sums, kTileQueries);
  }
  asm volatile("" ::: "memory");
}

/// Of 16 rows of weights in 4 and 5, x in 6 and 7, results in 0 and 1. A tile's rows are as far apart as the
/// call's rows allow, each the beginning of a stretch of rows that follow: memory is read as 16 long streams.
RWKVX_AMX void few_rows_amx(const TileFewRows& s) {
  constexpr int64_t kAhead = 8 * kTileDepth;  // of each stream
  const int64_t in = s.steps * kTileDepth, apart = s.weight_tiles;
  const int64_t stream = apart * in, stream_bytes = 2 * stream;
  const int64_t x_bytes = 4 * s.rows, sums_bytes = x_bytes * apart;
  const BFloat16* later = s.weights + kAhead;
  const auto fetch = [&]() __attribute__((always_inline, target("amx-tile,amx-bf16"))) {
    // Behind the streams' ends there are the next call's.
    if (later == s.weights + stream) later += (kTileRows - 1) * stream;
#pragma GCC unroll 16
    for (int64_t row = 0; row < kTileRows; ++row) __builtin_prefetch(later + row * stream, 0, 3);
    later += kTileDepth;
  };
  for (int64_t tile = 0; tile < s.weight_tiles; ++tile) {
    const BFloat16 *a = s.weights + tile * in, *b = s.x;
    float* sums = s.sums + tile * s.rows;
    _tile_zero(0);
    _tile_zero(1);
    int64_t i = 0;
    for (; i + 2 <= s.steps; i += 2, a += 2 * kTileDepth, b += 2 * kTileDepth * s.rows) {
      _tile_loadd(4, a, stream_bytes);
      _tile_loadd(6, b, x_bytes);
      fetch();
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, a + kTileDepth, stream_bytes);
      _tile_loadd(7, b + kTileDepth * s.rows, x_bytes);
      fetch();
      _tile_dpbf16ps(1, 5, 7);
    }
    if (i < s.steps) {
      _tile_loadd(4, a, stream_bytes);
      _tile_loadd(6, b, x_bytes);
      fetch();
      _tile_dpbf16ps(0, 4, 6);
    }
    alignas(64) float odd[kTileRows * kTileRows];
    _tile_stored(0, sums, sums_bytes);
    _tile_stored(1, odd, x_bytes);
    asm volatile("" ::: "memory");
    for (int64_t row = 0; row < kTileRows; ++row) {
      for (int64_t n = 0; n < s.rows; ++n) sums[row * apart * s.rows + n] += odd[row * s.rows + n];
    }
  }
}

/// Where such streams would be short: tiles of neighbouring rows, which are one stretch of memory, four at a
/// time, as the results of one would be waited for.
RWKVX_AMX void few_narrow_rows_amx(const TileFewRows& s) {
  const int64_t in = s.steps * kTileDepth, weight_bytes = 2 * in, x_bytes = 4 * s.rows;
  const BFloat16* later = s.weights + kFirstCacheAhead / sizeof(BFloat16);
  const auto fetch = [&]() __attribute__((always_inline, target("amx-tile,amx-bf16"))) {
    fetch_tile(later);
    later += kTileElements;
  };
  const BFloat16* a = s.weights;
  float* sums = s.sums;
#define RWKVX_SUM_TILE(t)                                   \
  _tile_zero(t);                                            \
  for (int64_t i = 0; i < s.steps; ++i) {                   \
    _tile_loadd(6, s.x + i * kTileDepth * s.rows, x_bytes); \
    _tile_loadd(4, a + i * kTileDepth, weight_bytes);       \
    fetch();                                                \
    _tile_dpbf16ps(t, 4, 6);                                \
  }                                                         \
  a += kTileRows * in
  int64_t tile = 0;
  for (; tile + 4 <= s.weight_tiles; tile += 4, sums += 4 * kTileRows * s.rows) {
    RWKVX_SUM_TILE(0);
    RWKVX_SUM_TILE(1);
    RWKVX_SUM_TILE(2);
    RWKVX_SUM_TILE(3);
    _tile_stored(0, sums, x_bytes);
    _tile_stored(1, sums + kTileRows * s.rows, x_bytes);
    _tile_stored(2, sums + 2 * kTileRows * s.rows, x_bytes);
    _tile_stored(3, sums + 3 * kTileRows * s.rows, x_bytes);
  }
  for (; tile < s.weight_tiles; ++tile, sums += kTileRows * s.rows) {
    RWKVX_SUM_TILE(0);
    _tile_stored(0, sums, x_bytes);
  }
#undef RWKVX_SUM_TILE
}

RWKVX_AMX void sum_few_rows_amx(const TileFewRows& s) {
  TileConfiguration configuration;
  for (const int tile : {0, 1, 2, 3, 6, 7}) configuration.row_bytes[tile] = static_cast<uint16_t>(4 * s.rows);
  asm volatile("" ::: "memory");
  _tile_loadconfig(&configuration);
  s.steps <= kNarrowSteps ? few_narrow_rows_amx(s) : few_rows_amx(s);
  asm volatile("" ::: "memory");
  _tile_release();
}

bool tiles_allowed() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

const TileUnit* tile_unit() {
  static constexpr TileUnit unit{begin_amx, end_amx,        multiply_amx,
                                 score_amx, add_values_amx, sum_few_rows_amx};
  static const bool usable = has_amx() && tiles_allowed();
  return usable && has_bf16_products() ? &unit : nullptr;
}

#else

const TileUnit* tile_unit() { return nullptr; }

#endif

}  // namespace rwkvx::cpu
