#include <cfloat>

#include "base/assert.h"
#include "ops/cuda/attention_parts.h"

/// Chooses chunks for many rows: gates as a matrix product in float32, of which only each row's largest are
/// kept.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 128;         // of a block, 32 for each warp
constexpr int kSums = 64;          // of a step
constexpr int kPitch = kHead + 4;  // floats: rows next to each other lie in different banks
constexpr int kScanPitch = kSums / 2 + 2;
constexpr size_t kSharedBytes = (kRows + 2 * kSums) * kPitch * sizeof(float);
static_assert(kRows * kScanPitch <= kSums * kPitch, "gates take the place of the sums they come from");

/// A row's K largest so far, the largest first; of equals the first that came.
template <int K>
struct Largest {
  float gate[K];
  int32_t chunk[K];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      gate[i] = -INFINITY;
      chunk[i] = -1;
    }
  }
  __device__ __forceinline__ void take(float g, int32_t c) {
    g = fmaxf(g, -FLT_MAX);  // NaN too: something is always chosen
    if (!(g > gate[K - 1])) return;
    gate[K - 1] = g;
    chunk[K - 1] = c;
#pragma unroll
    for (int i = K - 1; i > 0; --i) {
      const bool swap = gate[i] > gate[i - 1];
      const float above = gate[i - 1];
      const int32_t above_chunk = chunk[i - 1];
      gate[i - 1] = swap ? gate[i] : above;
      chunk[i - 1] = swap ? chunk[i] : above_chunk;
      gate[i] = swap ? above : gate[i];
      chunk[i] = swap ? above_chunk : chunk[i];
    }
  }
};

/// One block for kRows rows of a piece and a head. Sums of parts come chunk after chunk.
template <int K, bool kParts>
__global__ void __launch_bounds__(kThreads, K > 2 ? 2 : 3)
    choose_tiles_kernel(const __grid_constant__ Pieces pieces, Attend a) {
  allow_next_kernel();
  wait_for_previous_kernel();
  auto* const queries = dynamic_shared<float>();
  float* const all_sums = queries + kRows * kPitch;
  const auto head = static_cast<int32_t>(blockIdx.x) % a.heads;
  const auto tile = static_cast<int32_t>(blockIdx.x) / a.heads;
  int s = 0;
  while (s + 1 < pieces.count && tile >= pieces.of[s + 1].tiles) ++s;
  const Piece& piece = pieces.of[s];
  const auto B = static_cast<int32_t>(piece.kv.chunk_size);
  const int32_t start = (tile - piece.tiles) * kRows;  // of the piece's rows
  const int32_t count = min(kRows, piece.rows - start);
  const int64_t first_row = piece.row - pieces.first_row() + start;
  const auto position = static_cast<int32_t>(piece.position) + start;
  const int32_t parts = kParts ? B / static_cast<int32_t>(piece.kv.part) : 1;
  const int32_t most_own = (position + count - 1) / B;
  const int32_t sums = piece.dense != 0 || most_own <= a.top ? 0 : most_own * parts;

  const auto tid = static_cast<int32_t>(threadIdx.x), lane = tid % 32, warp = tid / 32;
  const auto load = [&](int32_t step) {
    float* const to = all_sums + step % 2 * (kSums * kPitch);
#pragma unroll
    for (int32_t i = 0; i < kSums * 16 / kThreads; ++i) {
      const int32_t row = tid / 16 + i * (kThreads / 16), part = tid % 16;
      const int32_t sum = min(step * kSums + row, sums - 1);  // repeated at the end, and not looked at
      const KvPage& page = piece.kv.pages[sum / parts];
      const auto* const from = static_cast<const float*>(kParts ? page.part_sums : page.key_sums) +
                               (static_cast<int64_t>(head) * parts + sum % parts) * kHead;
      copy_async_16(to + row * kPitch + 4 * part, from + 4 * part);
    }
  };
  if (sums > 0) {
#pragma unroll 4
    for (int32_t i = 0; i < kRows * 16 / kThreads; ++i) {
      const int32_t row = tid / 16 + i * (kThreads / 16), part = tid % 16;
      const int64_t from = first_row + min(row, count - 1);
      copy_async_16(queries + row * kPitch + 4 * part, a.q + (from * a.heads + head) * kHead + 4 * part);
    }
    load(0);
    copy_async_commit();
  }

  // This thread computes rows 4 i + lane / 8 of its warp's by sums 8 j + lane % 8, and then scans row `lane`.
  const int32_t own = min(position + warp * 32 + lane, position + count - 1) / B;
  Largest<K> largest;
  largest.clear();
  int32_t chunk = 0, part = 0;  // of the next gate to scan
  float best_part = -INFINITY;
  const int32_t steps = (sums + kSums - 1) / kSums;
  for (int32_t step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();
    if (step + 1 < steps) load(step + 1);
    copy_async_commit();
    float* const now = all_sums + step % 2 * (kSums * kPitch);
    const float* const mine = queries + (warp * 32 + lane / 8) * kPitch;
    const float* const theirs = now + lane % 8 * kPitch;
    float gates[8][8] = {};
#pragma unroll 2
    for (int32_t k = 0; k < kHead; k += 4) {
      float4 sum[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] = load4(theirs + 8 * j * kPitch + k);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float4 q = load4(mine + 4 * i * kPitch + k);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          gates[i][j] += q.x * sum[j].x;
          gates[i][j] += q.y * sum[j].y;
          gates[i][j] += q.z * sum[j].z;
          gates[i][j] += q.w * sum[j].w;
        }
      }
    }
    __syncthreads();  // all have read the sums
    float* const scan = now + warp * (32 * kScanPitch);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scan[(4 * i + lane / 8) * kScanPitch + 8 * j + lane % 8] = gates[i][4 * half + j];
        }
      }
      __syncwarp();
#pragma unroll 4
      for (int j = 0; j < kSums / 2; j += 2) {
        const float2 two = *reinterpret_cast<const float2*>(scan + lane * kScanPitch + j);
        if constexpr (kParts) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            best_part = fmaxf(best_part, e == 0 ? two.x : two.y);
            if (++part < parts) continue;
            if (chunk < own) largest.take(best_part, chunk);
            best_part = -INFINITY;
            part = 0;
            ++chunk;
          }
        } else {
          if (chunk < own) largest.take(two.x, chunk);
          if (chunk + 1 < own) largest.take(two.y, chunk + 1);
          chunk += 2;
        }
      }
    }
  }

  const int32_t row = warp * 32 + lane;
  if (row >= count) return;
  const int32_t seen = chunks_seen(a, piece, own);
  int32_t* const chosen = a.chosen + ((first_row + row) * a.heads + head) * a.stride;
  if (seen == own) {
    for (int64_t i = 0; i < a.stride; ++i) chosen[i] = i < own ? static_cast<int32_t>(i) : -1;
    return;
  }
#pragma unroll
  for (int i = 0; i < K; ++i) {
    if (i < seen) chosen[i] = largest.chunk[i];
  }
  for (int64_t i = seen; i < a.stride; ++i) chosen[i] = -1;
}

template <int K>
void choose(Gpu& gpu, const Pieces& pieces, const Attend& a, int64_t blocks, bool parts) {
  const Grid grid{static_cast<unsigned>(blocks), kThreads, kSharedBytes};
  if (parts) {
    launch(gpu, grid, choose_tiles_kernel<K, true>, pieces, a);
  } else {
    launch(gpu, grid, choose_tiles_kernel<K, false>, pieces, a);
  }
}

}  // namespace

void choose_chunks(Gpu& gpu, const Pieces& pieces, const Attend& a) {
  if (a.chosen == nullptr) return;
  Pieces tiled = pieces;
  int32_t tiles = 0, parts = 0;
  bool sparse = false;
  for (int i = 0; i < pieces.count; ++i) {
    Piece& piece = tiled.of[i];
    piece.tiles = tiles;
    tiles += (piece.rows + kRows - 1) / kRows;
    parts += piece.kv.part > 0 ? 1 : 0;
    sparse = sparse || piece.dense == 0;
  }
  const int64_t blocks = static_cast<int64_t>(tiles) * a.heads;
  const bool alike = parts == 0 || parts == pieces.count;
  if (!sparse || a.top > 8 || !alike) return choose_by_row(gpu, pieces, a, nullptr);
  if (a.top <= 1) return choose<1>(gpu, tiled, a, blocks, parts > 0);
  if (a.top <= 2) return choose<2>(gpu, tiled, a, blocks, parts > 0);
  if (a.top <= 4) return choose<4>(gpu, tiled, a, blocks, parts > 0);
  choose<8>(gpu, tiled, a, blocks, parts > 0);
}

}  // namespace rwkvx::cuda
