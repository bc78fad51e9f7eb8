#include <algorithm>

#include "ops/cuda/few_rows_jobs.h"
#include "ops/cuda/types.h"

/// few_rows_sparse() of up to 16 rows of bfloat16 by tensor cores. A block has 128 outputs and a range of
/// inputs; it lists those that are not zero in all rows, with the rows' values, and reads each one's weights
/// once. The rows are the 16 × k operand, the weights the k × 8 one: a lane has 8 consecutive outputs of 4
/// inputs, output j of which belongs to the product with columns 8 n + j. Sums of the blocks are added in
/// order by the last block of each 128 outputs.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSplits = 4;                              // warps that share the inputs of a block
constexpr int kOutputs = kThreads / 32 / kSplits * 64;  // of a block
constexpr int kMostInputs = 1024;                       // of a block: 4 of a thread
constexpr int kPartialFloats = kOutputs + 4;            // of a row of partial sums
constexpr int kValues = kMostInputs + 8;                // of a row of listed values: no bank conflicts

/// Steps of 16 inputs that are under way.
template <int Sets>
constexpr int kAhead = Sets == 1 ? 4 : 3;
/// Listed values of the rows, later partial sums.
template <int Sets>
constexpr int kSharedBytes = std::max(2 * 8 * Sets * kValues, 4 * kSplits * 8 * Sets * kPartialFloats);

/// Outputs first … first + 127 from the sums of all parts, in order.
__device__ __forceinline__ void add_parts(const float* sums, int rows, int parts, int out, int first,
                                          const Result& result) {
  constexpr int kTogether = 16;  // parts that are loaded together
  for (int i = static_cast<int>(threadIdx.x); i < rows * kOutputs; i += kThreads) {
    const int row = i / kOutputs, at = first + i % kOutputs;
    if (at >= out) continue;
    const float* from = sums + static_cast<int64_t>(row) * parts * out + at;
    const int64_t place = static_cast<int64_t>(row) * out + at;
    const float before = before_result(result, place);
    float total = 0.0f;
    for (int part = 0; part < parts; part += kTogether) {
      float values[kTogether];
#pragma unroll
      for (int p = 0; p < kTogether; ++p) {
        values[p] = part + p < parts ? from[static_cast<int64_t>(part + p) * out] : 0.0f;
      }
#pragma unroll
      for (int p = 0; p < kTogether; ++p) total += values[p];
    }
    store_result(result, place, total, before);
  }
}

/// Block (x, y): outputs 128 x …, inputs y · inputs …; sums [R, blocks y, out]; tickets [blocks x], zero.
/// Sets: of 8 rows.
template <int Sets>
__global__ void __launch_bounds__(kThreads, 2)
    sparse_tensor_kernel(const Bf16* w, const Bf16* x, int rows, int in, int out, int inputs, float* sums,
                         int32_t* tickets, Result result) {
  __shared__ uint4 memory[kSharedBytes<Sets> / 16];
  __shared__ int2 place_pairs[kMostInputs / 2];
  __shared__ int counts[kThreads / 32];
  allow_next_kernel();
  wait_for_previous_kernel();
  auto* places = reinterpret_cast<int*>(place_pairs);
  auto* values = reinterpret_cast<uint16_t*>(memory);  // [rows, kValues]
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4,
            t = lane % 4;
  const int first = static_cast<int>(blockIdx.y) * inputs, end = min(first + inputs, in);

  // The inputs that are not zero everywhere, in order.
  const int mine = first + 4 * thread;
  uint2 loaded[8 * Sets];
  uint2 any = make_uint2(0, 0);
#pragma unroll
  for (int r = 0; r < 8 * Sets; ++r) {
    loaded[r] = make_uint2(0, 0);
    if (r < rows && mine < end) {
      loaded[r] = *reinterpret_cast<const uint2*>(x + static_cast<int64_t>(r) * in + mine);
    }
    any.x |= loaded[r].x, any.y |= loaded[r].y;
  }
  bool taken[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    taken[i] = ((i < 2 ? any.x : any.y) & (i % 2 == 0 ? 0x7fffu : 0x7fff0000u)) != 0;
  const int count = taken[0] + taken[1] + taken[2] + taken[3];
  int before = count;
#pragma unroll
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const int lower = __shfl_up_sync(kAllLanes, before, lanes);
    if (lane >= lanes) before += lower;
  }
  if (lane == 31) counts[warp] = before;
  before -= count;
  __syncthreads();
  int found = 0;
#pragma unroll
  for (int other = 0; other < kThreads / 32; ++other) {
    if (other < warp) before += counts[other];
    found += counts[other];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (!taken[i]) continue;
    places[before] = mine + i;
#pragma unroll
    for (int r = 0; r < 8 * Sets; ++r) {
      if (r < rows) {
        values[r * kValues + before] =
            static_cast<uint16_t>((i < 2 ? loaded[r].x : loaded[r].y) >> (16 * (i % 2)));
      }
    }
    ++before;
  }
  // Steps take 16: the last input again, with zeros for values.
  const int steps = (found + 15) / 16;
  if (count > 0 && before == found) {
    const int again = places[found - 1];
    for (int i = found; i < 16 * steps; ++i) places[i] = again;
  }
  if (found + thread < 16 * steps) {
    for (int r = 0; r < rows; ++r) values[r * kValues + found + thread] = 0;
  }
  __syncthreads();

  const int split = warp % kSplits,
            column = static_cast<int>(blockIdx.x) * kOutputs + warp / kSplits * 64 + 8 * g;
  const Bf16* from = w + min(column, out - 8);  // out is a multiple of 8
  uint4 under_way[kAhead<Sets>][4];
  const auto load = [&](uint4(&to)[4], int step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int2 k = place_pairs[8 * step + 4 * half + t];
      to[2 * half] = load_once(reinterpret_cast<const uint4*>(from + static_cast<int64_t>(k.x) * out));
      to[2 * half + 1] = load_once(reinterpret_cast<const uint4*>(from + static_cast<int64_t>(k.y) * out));
    }
  };
  float sum[8][4] = {};
#pragma unroll
  for (int a = 0; a < kAhead<Sets>; ++a) {
    if (split + a * kSplits < steps) load(under_way[a], split + a * kSplits);
  }
  // Rows behind the last repeat it and are not stored.
  const uint16_t* row0 = values + min(g, rows - 1) * kValues + 2 * t;
  const uint16_t* row8 = values + min(g + 8, rows - 1) * kValues + 2 * t;
  for (int step = split; step < steps; step += kAhead<Sets> * kSplits) {
#pragma unroll
    for (int a = 0; a < kAhead<Sets>; ++a) {
      const int now = step + a * kSplits;
      if (now >= steps) break;
      uint32_t v[4] = {*reinterpret_cast<const uint32_t*>(row0 + 16 * now), 0,
                       *reinterpret_cast<const uint32_t*>(row0 + 16 * now + 8), 0};
      if constexpr (Sets == 2) {
        v[1] = *reinterpret_cast<const uint32_t*>(row8 + 16 * now);
        v[3] = *reinterpret_cast<const uint32_t*>(row8 + 16 * now + 8);
      }
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const auto word = [&](int i) {
          const uint4& quad = under_way[a][i];
          return j / 2 == 0 ? quad.x : (j / 2 == 1 ? quad.y : (j / 2 == 2 ? quad.z : quad.w));
        };
        const uint32_t halves = j % 2 == 0 ? 0x5410u : 0x7632u;
        mma_bf16(sum[j], v, {pick_bytes(word(0), word(1), halves), pick_bytes(word(2), word(3), halves)});
      }
      const int next = now + kAhead<Sets> * kSplits;
      if (next < steps) load(under_way[a], next);
    }
  }

  // A lane has outputs 16 t … 16 t + 15 of its warp's 64.
  __syncthreads();
  auto* partial = reinterpret_cast<float*>(memory);  // [kSplits, 8 · Sets, kPartialFloats]
#pragma unroll
  for (int s = 0; s < Sets; ++s) {
    float* to = partial + (split * 8 * Sets + 8 * s + g) * kPartialFloats + warp / kSplits * 64 + 16 * t;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int d = 2 * s + half;
      store4(to + 8 * half, make_float4(sum[0][d], sum[1][d], sum[2][d], sum[3][d]));
      store4(to + 8 * half + 4, make_float4(sum[4][d], sum[5][d], sum[6][d], sum[7][d]));
    }
  }
  __syncthreads();
  for (int i = thread; i < rows * kOutputs; i += kThreads) {
    const int row = i / kOutputs, output = i % kOutputs,
              at = static_cast<int>(blockIdx.x) * kOutputs + output;
    if (at >= out) continue;
    float total = 0.0f;
#pragma unroll
    for (int other = 0; other < kSplits; ++other)
      total += partial[(other * 8 * Sets + row) * kPartialFloats + output];
    sums[(static_cast<int64_t>(row) * gridDim.y + blockIdx.y) * out + at] = total;
  }

  __syncthreads();
  if (thread == 0) counts[0] = take_ticket(tickets + blockIdx.x);
  __syncthreads();
  const int parts = static_cast<int>(gridDim.y);
  if (counts[0] != parts - 1) return;
  if (thread == 0) tickets[blockIdx.x] = 0;
  add_parts(sums, rows, parts, out, static_cast<int>(blockIdx.x) * kOutputs, result);
}

}  // namespace

void few_rows_sparse_tensor(Gpu& gpu, const FewRowsCall& call) {
  const Arena::Scope scope(gpu.scratch());
  const GpuMatrix& m = *call.w;
  const int64_t rows = call.x.dim(0);
  // Two blocks for each multiprocessor.
  const int64_t across = blocks_for(m.out, kOutputs);
  const int64_t wanted = std::max<int64_t>(1, 2 * gpu.multiprocessors() / across);
  const int inputs =
      static_cast<int>(std::clamp<int64_t>((m.in + wanted - 1) / wanted, 64, kMostInputs) + 7) / 8 * 8;
  const auto parts = static_cast<int>(blocks_for(m.in, inputs));
  const View sums = gpu.scratch().take(DType::f32, {rows, parts, m.out});
  const Grid grid{dim3(static_cast<unsigned>(across), static_cast<unsigned>(parts)), kThreads};
  launch(gpu, grid, rows <= 8 ? sparse_tensor_kernel<1> : sparse_tensor_kernel<2>,
         static_cast<const Bf16*>(m.body), pointer<Bf16>(call.x), static_cast<int>(rows),
         static_cast<int>(m.in), static_cast<int>(m.out), inputs, sums.as<float>(), gpu.tickets(across),
         result_of(call));
}

}  // namespace rwkvx::cuda
