#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/few_rows_units.h"
#include "ops/cuda/types.h"

/// Products of up to 16 rows of bfloat16 by tensor cores: the weights are the 16 × k operand, the rows of x
/// the k × 8 one. The sum over k may take its elements in any order that both operands agree on: lane (g, t)
/// has whole units of weight rows g and g + 8, and the same elements of row g of x. Warps share the k of a
/// tile of 16 outputs.
namespace rwkvx::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
constexpr int kLogWarps = 3;
constexpr int kTile = 16;  // outputs
constexpr int kLogTile = 4;
constexpr size_t kMostStagedBytes = 44 * 1024;
constexpr int kRowFloats = kTile + 4;  // of a row of partial sums: no bank conflicts

/// What a warp has of the outputs: a tile, and every so-many-th step of k.
struct Share {
  const FewRowsJob* job;
  int first, output;  // of the block's tiles, of the warp's
  int splits, log_splits, step, steps, last;
  WeightRow rows[2];

  __device__ __forceinline__ Share(const FewRowsJobs& jobs, int block, int warp, int g)
      : job(&jobs.of_block(block)), splits(job->splits), steps((job->units + 3) / 4), last(job->units - 1) {
    log_splits = __ffs(splits) - 1;
    first = ((block - job->first_block) * kWarps * kTile) >> log_splits;
    output = first + (warp >> log_splits) * kTile;
    step = warp & (splits - 1);
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

/// Elements of a row of x in shared memory: 16 bytes of lanes (g, t) and (g + 1, t) meet in no bank.
__host__ __device__ constexpr int staged_row(int in) { return (in + 63) / 64 * 64 + 32; }
/// The rows of x, to shared memory; for all threads.
__device__ __forceinline__ void stage(const FewRowsJob& job, int rows, Bf16* to) {
  const int row = staged_row(job.in);
  const Bf16* x = static_cast<const Bf16*>(job.x);
  for (int r = 0; r < rows; ++r) {
    for (int i = 8 * static_cast<int>(threadIdx.x); i < job.in; i += 8 * 32 * kWarps) {
      copy_async_16(to + r * row + i, x + r * job.in + i);
    }
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
}

/// Sets: of 8 rows of x. A block has one share after another; the next one's weights are on their way while
/// sums are put together. kStaged: x comes to shared memory as a whole. Products of bfloat16 gain by it, as
/// loads of x wait for one another; those of quantised weights do not.
template <typename Unit, int Sets, bool kStaged>
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

  Bf16* const staged = dynamic_shared<Bf16>();
  const void* staged_x = nullptr;
  while (true) {
    const FewRowsJob& job = *share.job;
    const int splits = share.splits, job_log_splits = share.log_splits, first = share.first,
              last = share.last;
    if (kStaged && job.x != staged_x) {  // all warps have read what was there: they met behind it
      stage(job, jobs.rows, staged);
      staged_x = job.x;
    }
    // Columns behind the last row repeat it and are not stored.
    const int row = kStaged ? staged_row(job.in) : job.in;
    const Bf16* x = (kStaged ? staged : static_cast<const Bf16*>(job.x)) + min(g, jobs.rows - 1) * row;
    const int apart = (min(g + 8, jobs.rows - 1) - min(g, jobs.rows - 1)) * row;  // rows of the second set
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
            const Bf16* from = x + s * apart + Unit::at(unit, group);
            if constexpr (kStaged) {
              if (unit <= last) v[s] = *reinterpret_cast<const uint4*>(from);
            } else {
              load_if(v[s], from, unit <= last);
            }
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
    const int log_tiles = kLogWarps - job_log_splits;
    for (int i = static_cast<int>(threadIdx.x); i < jobs.rows << (log_tiles + kLogTile); i += 32 * kWarps) {
      const int o = i % kTile, tile = (i / kTile) & ((1 << log_tiles) - 1), r = i >> (log_tiles + kLogTile);
      const int output = first + tile * kTile + o;
      if (output >= job.out) continue;
      float sum = 0.0f;
      for (int split = 0; split < splits; ++split) sum += partial[(tile << job_log_splits) + split][r][o];
      store_result(job, r, output, sum);
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
  size_t bytes = 0;
  for (int i = 0; i < jobs.count; ++i) {
    bytes = std::max(bytes, sizeof(Bf16) * static_cast<size_t>(jobs.rows * staged_row(jobs.of[i].in)));
  }
  const bool staged = Unit::kElements == 8 && bytes <= kMostStagedBytes;
  const Grid grid{static_cast<unsigned>(std::min(blocks, 2 * gpu.multiprocessors())), 32 * kWarps,
                  staged ? bytes : 0};
  if constexpr (Unit::kElements == 8) {
    if (staged && jobs.rows <= 8) return launch(gpu, grid, few_rows_tensor_kernel<Unit, 1, true>, jobs);
    if (staged) return launch(gpu, grid, few_rows_tensor_kernel<Unit, 2, true>, jobs);
  }
  if (jobs.rows <= 8) return launch(gpu, grid, few_rows_tensor_kernel<Unit, 1, false>, jobs);
  launch(gpu, grid, few_rows_tensor_kernel<Unit, 2, false>, jobs);
}

}  // namespace

void few_rows_tensor(Gpu& gpu, std::span<const FewRowsCall> calls) {
  if (std::all_of(calls.begin(), calls.end(), fits_one_row)) return few_rows_one(gpu, calls);
  with_tensor_unit(calls[0].w->type, [&](auto unit) {
    using Unit = decltype(unit);
    for_launches(calls, Unit::kElements, [&](FewRowsJobs& jobs) { start<Unit>(gpu, jobs); });
  });
}

}  // namespace rwkvx::cuda
