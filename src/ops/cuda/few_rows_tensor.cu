#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/few_rows_units.h"
#include "ops/cuda/types.h"

/// Products of up to 16 rows of bfloat16 by tensor cores: the weights are the 16 × k operand, the rows of x
/// the k × 8 one. The sum over k may take its elements in any order that both operands agree on: lane (g, t)
/// has whole units of weight rows g and g + 8, and the same elements of row g of x. Warps share the k of a
/// tile of 16 outputs.
namespace rwkvx::cuda {
namespace {

constexpr int kWarps = 8;              // of a block
constexpr int kTile = 16;              // outputs
constexpr int kRowFloats = kTile + 4;  // of a row of partial sums: no bank conflicts

/// What a warp has of the outputs: a tile, and every so-many-th step of k.
struct Share {
  const FewRowsJob* job;
  int first, output;  // of the block's tiles, of the warp's
  int splits, step, steps, last;
  WeightRow rows[2];

  __device__ __forceinline__ Share(const FewRowsJobs& jobs, int block, int warp, int g)
      : job(&jobs.of_block(block)), splits(job->splits), steps((job->units + 3) / 4), last(job->units - 1) {
    first = (block - job->first_block) * (kWarps / splits) * kTile;
    output = first + warp / splits * kTile;
    step = warp % splits;
    rows[0] = job->w.row(min(output + g, job->out - 1));
    rows[1] = job->w.row(min(output + g + 8, job->out - 1));
  }
  template <typename Unit, int kAhead>
  __device__ __forceinline__ void load(Unit (&units)[kAhead][2], int t) const {
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int ahead = step + a * splits;
#pragma unroll
      for (int i = 0; i < 2; ++i) units[a][i].load(rows[i], min(4 * ahead + t, last), ahead < steps);
    }
  }
};

/// Sets: of 8 rows of x. A block has one share after another; the next one's weights are on their way while
/// sums are put together.
template <typename Unit, int Sets>
__global__ void __launch_bounds__(32 * kWarps, 2)
    few_rows_tensor_kernel(const __grid_constant__ FewRowsJobs jobs) {
  constexpr int kAhead = Sets == 1 ? Unit::kAhead : Unit::kAheadOfMore;
  __shared__ float partials[2][kWarps][8 * Sets][kRowFloats];
  allow_next_kernel();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
  int block = static_cast<int>(blockIdx.x), turn = 0;
  Share share(jobs, block, warp, g);
  // Weights that never change may come while the kernel before ends.
  if (!share.job->constant) wait_for_previous_kernel();
  Unit units[kAhead][2];
#pragma unroll
  for (int a = 0; a < kAhead; ++a) units[a][0].clear(), units[a][1].clear();
  share.load(units, t);
  wait_for_previous_kernel();

  while (true) {
    const FewRowsJob& job = *share.job;
    const int splits = share.splits, tiles = kWarps / splits, first = share.first, last = share.last;
    // Columns behind the last row repeat it and are not stored.
    const Bf16* x = static_cast<const Bf16*>(job.x) + static_cast<int64_t>(min(g, jobs.rows - 1)) * job.in;
    const int apart = (min(g + 8, jobs.rows - 1) - min(g, jobs.rows - 1)) * job.in;  // rows of the second set
    float sums[Sets][4] = {};
    for (int step = share.step; step < share.steps; step += kAhead * splits) {
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        // Behind the end x counts as zero.
        const int now = step + a * splits, unit = 4 * now + t;
        const auto scales0 = units[a][0].scales(unit), scales1 = units[a][1].scales(unit);
#pragma unroll
        for (int group = 0; group < Unit::kElements / 8; ++group) {
          uint4 v[Sets];
#pragma unroll
          for (int s = 0; s < Sets; ++s) {
            v[s] = kNoWords;
            load_if(v[s], x + s * apart + Unit::at(unit, group), unit <= last);
            v[s] = in_group_order<Unit::kMixed>(v[s]);
          }
          uint32_t w0[4], w1[4];
          units[a][0].pairs(scales0, unit, group, w0);
          units[a][1].pairs(scales1, unit, group, w1);
#pragma unroll
          for (int s = 0; s < Sets; ++s) {
            mma_bf16(sums[s], {w0[0], w1[0], w0[1], w1[1]}, {v[s].x, v[s].y});
            mma_bf16(sums[s], {w0[2], w1[2], w0[3], w1[3]}, {v[s].z, v[s].w});
          }
        }
        const int next = now + kAhead * splits;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          units[a][i].load(share.rows[i], min(4 * next + t, last), next < share.steps);
        }
      }
    }
    block += static_cast<int>(gridDim.x);
    const bool more = block < jobs.blocks;
    if (more) {
      share = Share(jobs, block, warp, g);
      share.load(units, t);
    }
    // Two buffers: a barrier later, everybody has read what was put into the other.
    auto& partial = partials[turn];
    turn ^= 1;
#pragma unroll
    for (int s = 0; s < Sets; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) partial[warp][8 * s + 2 * t + i % 2][g + i / 2 * 8] = sums[s][i];
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < tiles * kTile * jobs.rows; i += 32 * kWarps) {
      const int o = i % kTile, tile = i / kTile % tiles, row = i / (kTile * tiles);
      if (first + tile * kTile + o >= job.out) continue;
      float sum = 0.0f;
      for (int split = 0; split < splits; ++split) sum += partial[tile * splits + split][row][o];
      store_result(job, row, first + tile * kTile + o, sum);
    }
    if (!more) break;
  }
}

template <typename Unit>
void start(Gpu& gpu, FewRowsJobs& jobs) {
  int blocks = 0;
  for (int i = 0; i < jobs.count; ++i) {
    FewRowsJob& job = jobs.of[i];
    const int steps = (job.units + 3) / 4;
    job.splits = steps >= 16 ? 8 : (steps >= 8 ? 4 : (steps >= 4 ? 2 : 1));
    job.first_block = blocks;
    blocks += static_cast<int>(blocks_for(job.out, kWarps / job.splits * kTile));
  }
  jobs.blocks = blocks;
  const Grid grid{static_cast<unsigned>(std::min(blocks, 2 * gpu.multiprocessors())), 32 * kWarps};
  if (jobs.rows <= 8) return launch(gpu, grid, few_rows_tensor_kernel<Unit, 1>, jobs);
  launch(gpu, grid, few_rows_tensor_kernel<Unit, 2>, jobs);
}

}  // namespace

void few_rows_tensor(Gpu& gpu, std::span<const FewRowsCall> calls) {
  with_tensor_unit(calls[0].w->type, [&](auto unit) {
    using Unit = decltype(unit);
    for_launches(calls, Unit::kElements, [&](FewRowsJobs& jobs) { start<Unit>(gpu, jobs); });
  });
}

}  // namespace rwkvx::cuda
