#include <algorithm>

#include "base/assert.h"
#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/few_rows_norm.h"
#include "ops/cuda/types.h"

/// Products of one row with bfloat16 weights, what decoding of one sequence mostly is. The weights are the
/// 16 × k operand of the tensor cores: lane (g, t) has 16 bytes of weight rows g and g + 8 as they lie in
/// memory. Warps share the k of a tile of 16 outputs. A block has one tile after another, and asks for the
/// next one's weights as room becomes free; what of them fits is on its way before the kernel before has
/// ended.
namespace rwkvx::cuda {
namespace {

constexpr int kLogTile = 4, kTile = 1 << kLogTile;  // outputs
constexpr int kRowFloats = kTile + 4;               // of a row of partial sums: no bank conflicts
constexpr int kAhead = 10;                          // loads of a weight row that a lane has under way
constexpr int kElements = 8;                        // of a load
constexpr int kSharedPercent = 60;                  // of the first cache; the rest holds loads under way

struct OneRowJobs {
  FewRowsJobs products;
  RowNorm norm;                    // or nothing
  const float* mix[kFewRowsJobs];  // what norm's input of each product is mixed with, or null
};

/// Loads of a warp: every so-many-th step of k from `step`.
struct Loads {
  const uint8_t* rows[2];
  int step, steps, last, log_splits;

  __device__ __forceinline__ void load(uint4 (&w)[2], int a, int t) const {
    const int at = step + (a << log_splits);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_once_if(w[i], rows[i] + static_cast<int64_t>(min(4 * at + t, last)) * 16, at < steps);
    }
  }
};

/// What a warp has of the outputs: a tile, and a part of k.
struct Share {
  const FewRowsJob* job;
  int first;  // output of the block's tiles
  int log_splits, step, steps, last;
  const uint8_t* rows[2];

  /// Behind the last block: nothing.
  __device__ __forceinline__ Share(const FewRowsJobs& jobs, int block, int log_warps, int warp, int g)
      : job(&jobs.of_block(block)), steps((job->units + 3) / 4), last(job->units - 1) {
    log_splits = __ffs(job->splits) - 1;
    first = (block - job->first_block) << (log_warps + kLogTile - log_splits);
    step = warp & (job->splits - 1);
    const int output = first + (warp >> log_splits) * kTile;
    rows[0] = job->w.row(min(output + g, job->out - 1)).body;
    rows[1] = job->w.row(min(output + g + 8, job->out - 1)).body;
    if (block >= jobs.blocks) steps = 0;
  }
  __device__ __forceinline__ Loads loads(int from) const {
    return {{rows[0], rows[1]}, from, steps, last, log_splits};
  }
};

/// kNormed: x is made here, else it is copied here: loads that wait for one another take longer than the
/// products.
template <bool kNormed, int kLogWarps>
__global__ void __launch_bounds__(32 << kLogWarps, 16 >> kLogWarps)
    one_row_kernel(const __grid_constant__ OneRowJobs op) {
  constexpr int kWarps = 1 << kLogWarps, kThreads = 32 * kWarps;
  __shared__ float partials[2][kWarps][kRowFloats];
  __shared__ bool has_all_read;
  allow_next_kernel();
  const FewRowsJobs& jobs = op.products;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4,
            t = lane % 4, blocks = static_cast<int>(gridDim.x);
  int block = static_cast<int>(blockIdx.x), turn = 0;
  Share share(jobs, block, kLogWarps, warp, g);
  // What never changes may come while the kernel before ends.
  if (!share.job->constant) wait_for_previous_kernel();
  BlockNorm<kThreads> norm(op.norm, dynamic_shared<float>());
  if constexpr (kNormed) norm.prefetch(op.mix[share.job - jobs.of]);
  uint4 w[kAhead][2];
  const Loads first_loads = share.loads(share.step);
#pragma unroll
  for (int a = 0; a < kAhead; ++a) {
    w[a][0] = w[a][1] = make_uint4(0, 0, 0, 0);
    first_loads.load(w[a], a, t);
  }
  Share next(jobs, block + blocks, kLogWarps, warp, g);
  wait_for_previous_kernel();

  auto* x = dynamic_shared<Bf16>();
  if constexpr (kNormed) {
    x += kNormBuffers * sizeof(float) / sizeof(Bf16) * op.norm.width;
    norm.normalise();
    if (thread == 0) has_all_read = norm.has_read(blocks);
  }
  const void* made = nullptr;  // what x holds: a product's x, or its mix
  bool is_made = false;
  while (true) {
    const FewRowsJob& job = *share.job;
    const int log_splits = share.log_splits;
    // All warps have read what was there: they met behind it.
    if constexpr (kNormed) {
      const float* const mix = op.mix[share.job - jobs.of];
      if (!is_made || mix != made) {
        norm.put(mix, next.steps > 0 ? op.mix[next.job - jobs.of] : mix, x);
        is_made = true, made = mix;
        __syncthreads();
      }
    } else if (job.x != made) {
      for (int i = kElements * thread; i < job.in; i += kElements * kThreads) {
        copy_async_16(x + i, static_cast<const Bf16*>(job.x) + i);
      }
      copy_async_commit();
      copy_async_wait<0>();
      made = job.x;
      __syncthreads();
    }
    // This thread's output, and what it is added to.
    const int output = share.first + thread;
    const bool stores = thread < kTile << (kLogWarps - log_splits) && output < job.out;
    const float before = stores ? before_result(job.result, output) : 0.0f;

    float sums[2][4] = {};  // of weight rows g and g + 8
    for (int step = share.step; step < share.steps; step += kAhead << log_splits) {
      // What comes into the places of the weights that are multiplied.
      const int behind = step + (kAhead << log_splits);
      const Loads from = behind >= share.steps ? next.loads(next.step) : share.loads(behind);
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int unit = 4 * (step + (a << log_splits)) + t;
        auto v = make_uint4(0, 0, 0, 0);  // behind the end
        if (unit <= share.last) v = *reinterpret_cast<const uint4*>(x + kElements * unit);
        // Words 0 and 2 of a lane's weights as one row, 1 and 3 as the one eight below: nothing has to be
        // moved. Columns 0 and 1 have the x of either.
        const uint32_t low = g == 1 ? v.y : v.x, high = g == 1 ? v.w : v.z;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          mma_bf16(sums[i], {w[a][i].x, w[a][i].y, w[a][i].z, w[a][i].w}, {low, high});
        }
        from.load(w[a], a, t);
      }
    }
    // Two buffers: a barrier later, everybody has read what was put into the other.
    auto& partial = partials[turn];
    turn ^= 1;
    if (t == 0) {
      partial[warp][g] = sums[0][0] + sums[0][3];
      partial[warp][g + 8] = sums[1][0] + sums[1][3];
    }
    __syncthreads();
    if (stores) {
      float sum = 0.0f;
#pragma unroll 8
      for (int split = 0; split < 1 << log_splits; ++split) {
        sum += partial[((thread >> kLogTile) << log_splits) + split][thread % kTile];
      }
      store_result(job.result, output, sum, before);
    }
    block += blocks;
    if (block >= jobs.blocks) break;
    share = next;
    next = Share(jobs, block + blocks, kLogWarps, warp, g);
  }
  if constexpr (kNormed) {
    if (has_all_read) norm.finish();
  }
}

template <bool kNormed, int kLogWarps>
void start(Gpu& gpu, OneRowJobs& op) {
  FewRowsJobs& jobs = op.products;
  RWKVX_ASSERT(jobs.rows == 1);
  int width = 0;
  jobs.blocks = 0;
  for (int i = 0; i < jobs.count; ++i) {
    FewRowsJob& job = jobs.of[i];
    const int steps = (job.units + 3) / 4;
    job.splits = steps >= 16 ? 8 : (steps >= 8 ? 4 : (steps >= 4 ? 2 : 1));
    job.first_block = jobs.blocks;
    jobs.blocks += static_cast<int>(blocks_for(job.out, (1 << kLogWarps) / job.splits * kTile));
    width = std::max(width, job.in);
  }
  size_t bytes = sizeof(Bf16) * static_cast<size_t>(width);
  if (kNormed) bytes += sizeof(float) * kNormBuffers * static_cast<size_t>(op.norm.width);
  const Grid grid{static_cast<unsigned>(std::min(jobs.blocks, (16 >> kLogWarps) * gpu.multiprocessors())),
                  32 << kLogWarps, bytes, kSharedPercent};
  launch(gpu, grid, one_row_kernel<kNormed, kLogWarps>, op);
}

}  // namespace

bool fits_one_row(const FewRowsCall& call) {
  return call.x.dim(0) == 1 && call.x.dtype() == DType::bf16 && call.w->type == DType::bf16 &&
         call.w->in <= kMostOneRow;
}

void few_rows_one(Gpu& gpu, std::span<const FewRowsCall> calls) {
  for_launches(calls, kElements, [&](const FewRowsJobs& jobs) {
    OneRowJobs op{};
    op.products = jobs;
    start<false, 4>(gpu, op);
  });
}

bool few_rows_one_normed(Gpu& gpu, const NormShift& norm, std::span<const FewRowsCall> calls) {
  const int64_t width = norm.x.dim(1);
  bool fits = calls.size() >= kFewestNormed && calls.size() <= kFewRowsJobs && !norm.normed_needed &&
              width % 4 == 0 && width <= kMostNormed;
  for (const FewRowsCall& call : calls) {
    fits = fits && fits_few_rows(call) && !call.w->input_major && fits_one_row(call) &&
           call.w->constant == calls[0].w->constant;
  }
  if (!fits) return false;
  for_launches(calls, kElements, [&](const FewRowsJobs& jobs) {
    OneRowJobs op{};
    op.products = jobs;
    op.norm = {.x = norm.x.as<float>(),
               .gain = norm.gain.as<float>(),
               .bias = norm.bias.as<float>(),
               .last = norm.last.empty() ? nullptr : static_cast<float*>(norm.last[0]),
               .ticket = gpu.tickets(1),
               .eps = norm.eps,
               .width = static_cast<int>(width)};
    for (size_t i = 0; norm.mix && i < calls.size(); ++i) {
      const auto m = std::find_if(norm.y.begin(), norm.y.end(),
                                  [&](const View& y) { return y.data() == calls[i].x.data(); });
      RWKVX_ASSERT(m != norm.y.end());
      op.mix[i] = norm.mix.as<float>() + (m - norm.y.begin()) * width;
    }
    start<true, 3>(gpu, op);
  });
  return true;
}

}  // namespace rwkvx::cuda
