#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/few_rows_units.h"
#include "ops/cuda/types.h"

/// Products of few rows: the time is that of reading the weights. A warp has some outputs; its lanes take
/// turns at the units of their rows. Several products of one launch share it.
namespace rwkvx::cuda {
namespace {

constexpr int kWarps = 8;  // of a block
/// R: rows at most. Outputs: of a warp. Ahead: units of a lane that are loaded together.
template <typename Unit, typename X, int R, int Outputs, int Ahead>
__global__ void __launch_bounds__(32 * kWarps) few_rows_kernel(const __grid_constant__ FewRowsJobs jobs) {
  allow_next_kernel();
  const FewRowsJob& job = jobs.of_block(static_cast<int>(blockIdx.x));
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int first = ((static_cast<int>(blockIdx.x) - job.first_block) * kWarps + warp) * Outputs;

  WeightRow rows[Outputs];
#pragma unroll
  for (int o = 0; o < Outputs; ++o) rows[o] = job.w.row(min(first + o, job.out - 1));
    // The weights come closer while the kernel before ends.
#pragma unroll
  for (int o = 0; o < Outputs; ++o) {
    for (int64_t byte = lane * 128; byte < job.w.row_bytes; byte += 32 * 128)
      prefetch_l2(rows[o].body + byte);
  }
  wait_for_previous_kernel();

  const X* x = static_cast<const X*>(job.x);
  float sums[R][Outputs];
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int o = 0; o < Outputs; ++o) sums[r][o] = 0.0f;
  }
  const auto multiply_unit = [&](const Unit(&units)[Outputs], int unit) {
#pragma unroll
    for (int g = 0; g < Unit::kElements / 8; ++g) {
      float w[Outputs][8];
#pragma unroll
      for (int o = 0; o < Outputs; ++o) units[o].group(g, w[o]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (r >= jobs.rows) break;
        float v[8];
        load8(x + static_cast<int64_t>(r) * job.in + Unit::at(unit, g), v);
#pragma unroll
        for (int o = 0; o < Outputs; ++o) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[r][o] += v[i] * w[o][i];
        }
      }
    }
  };
  int unit = lane;
  for (; unit + 32 * (Ahead - 1) < job.units; unit += 32 * Ahead) {
    Unit units[Ahead][Outputs];
#pragma unroll
    for (int a = 0; a < Ahead; ++a) {
#pragma unroll
      for (int o = 0; o < Outputs; ++o) units[a][o].load(rows[o], unit + 32 * a);
    }
#pragma unroll
    for (int a = 0; a < Ahead; ++a) multiply_unit(units[a], unit + 32 * a);
  }
  for (; unit < job.units; unit += 32) {
    Unit units[Outputs];
#pragma unroll
    for (int o = 0; o < Outputs; ++o) units[o].load(rows[o], unit);
    multiply_unit(units, unit);
  }
  __syncwarp();
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int o = 0; o < Outputs; ++o) {
      const float sum = warp_sum(sums[r][o]);
      if (lane != 0 || r >= jobs.rows || first + o >= job.out) continue;
      store_result(job, r, first + o, sum);
    }
  }
}

template <typename Unit, typename X>
void start(Gpu& gpu, FewRowsJobs& jobs) {
  const auto run = [&](auto* kernel, int outputs) {
    int blocks = 0;
    for (int i = 0; i < jobs.count; ++i) {
      jobs.of[i].first_block = blocks;
      blocks += static_cast<int>(blocks_for(jobs.of[i].out, kWarps * outputs));
    }
    launch(gpu, {static_cast<unsigned>(blocks), 32 * kWarps}, kernel, jobs);
  };
  // A unit of many elements has its weights in as many registers.
  constexpr int kAhead = Unit::kElements == 8 ? 4 : 2;
  if (jobs.rows == 1) return run(few_rows_kernel<Unit, X, 1, 2, kAhead>, 2);
  if (jobs.rows <= 4) return run(few_rows_kernel<Unit, X, 4, 2, 2>, 2);
  run(few_rows_kernel<Unit, X, kFewRows, 2, 1>, 2);
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool fits_tensor(const FewRowsCall& call) {
  return call.x.dtype() == DType::bf16 && has_tensor_unit(call.w->type);
}

}  // namespace

bool fits_few_rows(const FewRowsCall& call) {
  const GpuMatrix& m = *call.w;
  const int64_t most = fits_tensor(call) ? kFewRowsTensor : kFewRows;
  return call.x.dim(0) <= most && m.in % 8 == 0 && aligned(m.body) && aligned(call.x.data());
}

void few_rows(Gpu& gpu, std::span<const FewRowsCall> calls) {
  if (fits_tensor(calls[0])) return few_rows_tensor(gpu, calls);
  with_unit(calls[0].w->type, [&](auto unit) {
    using Unit = decltype(unit);
    for_launches(calls, Unit::kElements, [&](FewRowsJobs& jobs) {
      if (calls[0].x.dtype() == DType::bf16) {
        // Others are for tensor cores.
        if constexpr (Unit::kElements == 8) start<Unit, Bf16>(gpu, jobs);
      } else {
        start<Unit, float>(gpu, jobs);
      }
    });
  });
}

}  // namespace rwkvx::cuda
