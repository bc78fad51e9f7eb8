#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/training_parts.h"

namespace rwkvx::cuda {
namespace {

__device__ __forceinline__ float4 zero4() { return make_float4(0, 0, 0, 0); }
__device__ __forceinline__ float4 add4(float4 a, float4 b) {
  return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
/// a + b·c
__device__ __forceinline__ float4 fma4(float4 a, float4 b, float4 c) {
  return make_float4(fmaf(b.x, c.x, a.x), fmaf(b.y, c.y, a.y), fmaf(b.z, c.z, a.z), fmaf(b.w, c.w, a.w));
}
__device__ __forceinline__ float4 sub4(float4 a, float4 b) {
  return make_float4(a.x - b.x, a.y - b.y, a.z - b.z, a.w - b.w);
}
__device__ __forceinline__ float sum4(float4 a) { return (a.x + a.y) + (a.z + a.w); }

struct SumTargets {
  float* to[kSummedParameters];
};

constexpr int kSumColumns = 32, kSumGroups = 32;

/// Thread (column, group of partial sums).
__global__ void __launch_bounds__(kSumColumns* kSumGroups)
    add_parameter_sums_kernel(const float* partials, int count, int width, int columns,
                              const __grid_constant__ SumTargets targets) {
  __shared__ float sums[kSumGroups][kSumColumns + 1];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int column = static_cast<int>(blockIdx.x * kSumColumns + threadIdx.x);
  float sum = 0;
  if (column < columns) {
#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.y); i < count; i += kSumGroups) {
      sum += partials[static_cast<int64_t>(i) * columns + column];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || column >= columns) return;
  float* to = targets.to[column / width];
  if (to == nullptr) return;
  float total = 0;
  for (int group = 0; group < kSumGroups; ++group) total += sums[group][threadIdx.x];
  to[column % width] += total;
}

// Embedding. A token's rows are cut into segments; what has more than one goes through partial sums.
constexpr int64_t kSegmentRows = 64;
constexpr int kEmbedThreads = 256, kEmbedColumns = 512;

struct EmbedSegment {
  int32_t first, count;  // in the rows sorted by token
  int32_t token;
  int32_t partial;  // −1: the token's only one
};

__global__ void __launch_bounds__(kEmbedThreads)
    embed_segments_kernel(const EmbedSegment* segments, const int32_t* sorted, const float* dy, int width,
                          float* dtable, float* partials) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const EmbedSegment segment = segments[blockIdx.x];
  const int32_t* rows = sorted + segment.first;
  for (int c = 4 * static_cast<int>(threadIdx.x); c < width; c += 4 * static_cast<int>(blockDim.x)) {
    float4 sum = zero4();
#pragma unroll 4
    for (int i = 0; i < segment.count; ++i) {
      sum = add4(sum, load4(dy + static_cast<int64_t>(rows[i]) * width + c));
    }
    if (segment.partial < 0) {
      float* to = dtable + static_cast<int64_t>(segment.token) * width + c;
      store4(to, add4(load4(to), sum));
    } else {
      store4(partials + static_cast<int64_t>(segment.partial) * width + c, sum);
    }
  }
}

/// Segments here are of partial sums. Block (token, columns).
__global__ void __launch_bounds__(kEmbedColumns / 4)
    embed_partials_kernel(const EmbedSegment* tokens, const float* partials, int width, float* dtable) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const EmbedSegment segment = tokens[blockIdx.x];
  const int c = static_cast<int>(blockIdx.y) * kEmbedColumns + 4 * static_cast<int>(threadIdx.x);
  if (c >= width) return;
  float4 sum = zero4();
#pragma unroll 8
  for (int i = 0; i < segment.count; ++i) {
    sum = add4(sum, load4(partials + static_cast<int64_t>(segment.first + i) * width + c));
  }
  float* to = dtable + static_cast<int64_t>(segment.token) * width + c;
  store4(to, add4(load4(to), sum));
}

// Layer norm. A block takes row after row; a thread has kVectors × 4 columns of all of them.
constexpr int kNormThreads = 512;

/// All threads get the sums. `scratch` [16] must not be in use from the call before.
__device__ __forceinline__ float2 block_sums(float2 x, float2* scratch) {
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  x.x = warp_sum(x.x);
  x.y = warp_sum(x.y);
  if (lane == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  const float2 all = lane < warps ? scratch[lane] : make_float2(0, 0);
  return make_float2(warp_sum(all.x), warp_sum(all.y));
}

struct Norm {
  const float *x, *gain, *dy;
  float* dx;
  float eps;
  bool add;
  int64_t rows;
  int width;
  float* partials;  // [gridDim.x, 2, width]: of gain and bias; or null
};

template <int kVectors>
__global__ void __launch_bounds__(kNormThreads) layer_norm_backward_kernel(Norm norm) {
  __shared__ float2 scratch[3][kNormThreads / 32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int width = norm.width;
  const auto over = 1.0f / static_cast<float>(width);
  const auto column = [&](int i) {
    return 4 * static_cast<int>(threadIdx.x + static_cast<unsigned>(i) * blockDim.x);
  };
  float4 dgain[kVectors], dbias[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) dgain[i] = dbias[i] = zero4();
  for (int64_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
    float4 x[kVectors], dy[kVectors], before[kVectors];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const bool valid = column(i) < width;
      const int64_t at = row * width + column(i);
      x[i] = valid ? load4(norm.x + at) : zero4();
      dy[i] = valid ? load4(norm.dy + at) : zero4();
      before[i] = valid && norm.add ? load4(norm.dx + at) : zero4();
      sum += sum4(x[i]);
    }
    const float mean = block_sums(make_float2(sum, 0), scratch[0]).x * over;
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (column(i) >= width) continue;
      x[i] = sub4(x[i], make_float4(mean, mean, mean, mean));
      squares += sum4(make_float4(x[i].x * x[i].x, x[i].y * x[i].y, x[i].z * x[i].z, x[i].w * x[i].w));
    }
    const float variance = block_sums(make_float2(squares, 0), scratch[1]).x * over;
    const float scale = 1.0f / sqrtf(variance + norm.eps);
    float2 sums = make_float2(0, 0);  // of g = gain ⊙ dy, and of g ⊙ normal
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (column(i) >= width) continue;
      x[i] = make_float4(x[i].x * scale, x[i].y * scale, x[i].z * scale, x[i].w * scale);
      dgain[i] = fma4(dgain[i], dy[i], x[i]);
      dbias[i] = add4(dbias[i], dy[i]);
      dy[i] = fma4(zero4(), dy[i], load4(norm.gain + column(i)));
      sums.x += sum4(dy[i]);
      sums.y += sum4(fma4(zero4(), dy[i], x[i]));
    }
    sums = block_sums(sums, scratch[2]);
    const float mean_g = sums.x * over, mean_normal = sums.y * over;
    const auto back = [&](float g, float normal, float added) {
      return added + scale * (g - mean_g - normal * mean_normal);
    };
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (column(i) >= width) continue;
      store4(norm.dx + row * width + column(i),
             make_float4(back(dy[i].x, x[i].x, before[i].x), back(dy[i].y, x[i].y, before[i].y),
                         back(dy[i].z, x[i].z, before[i].z), back(dy[i].w, x[i].w, before[i].w)));
    }
  }
  if (norm.partials == nullptr) return;
  float* partials = norm.partials + static_cast<int64_t>(blockIdx.x) * 2 * width;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (column(i) >= width) continue;
    store4(partials + column(i), dgain[i]);
    store4(partials + width + column(i), dbias[i]);
  }
}

// Token shift. A thread has four columns of a piece of the rows.
constexpr int kShiftThreads = 128, kShiftBlocks = 4;  // of a multiprocessor
constexpr int kMixes = 6;

struct Shift {
  const float *x, *mix, *before, *from_after;  // the last two may be null
  const float* dy[kMixes];
  float* dx;
  const int64_t* offsets;
  int sequences;
  int64_t rows, piece;
  int width;
  float* partials;  // [gridDim.y, M, width] or null
};

/// The last s with bounds[s] ≤ x.
__device__ __forceinline__ int sequence_of(const int64_t* bounds, int count, int64_t x) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (bounds[middle] <= x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int kM>
__global__ void __launch_bounds__(kShiftThreads, kShiftBlocks)
    token_shift_backward_kernel(const __grid_constant__ Shift shift) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int width = shift.width;
  const int c = 4 * static_cast<int>(blockIdx.x * kShiftThreads + threadIdx.x);
  if (c >= width) return;
  const int64_t begin = blockIdx.y * shift.piece, end = min(begin + shift.piece, shift.rows);
  float4 mix[kM], dmix[kM];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    mix[m] = load4(shift.mix + static_cast<int64_t>(m) * width + c);
    dmix[m] = zero4();
  }
  int s = sequence_of(shift.offsets, shift.sequences, begin);
  int64_t first = shift.offsets[s], next = shift.offsets[s + 1];  // rows of this sequence and the next
  float4 previous = zero4();
  if (begin > first) previous = load4(shift.x + (begin - 1) * width + c);
  if (begin == 0 && shift.before != nullptr) previous = load4(shift.before + c);
  float4 kept = zero4();  // of dx of the row before, to which this row still sends
  for (int64_t row = begin; row < end; ++row) {
    if (row == next) {
      ++s;
      first = next;
      next = shift.offsets[s + 1];
      previous = zero4();
    }
    const int64_t at = row * width + c;
    float4 dy[kM];
#pragma unroll
    for (int m = 0; m < kM; ++m) dy[m] = load4(shift.dy[m] + at);
    const float4 x = load4(shift.x + at), difference = sub4(previous, x);
    float4 all = zero4(), sent = zero4();
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      all = add4(all, fma4(dy[m], make_float4(-mix[m].x, -mix[m].y, -mix[m].z, -mix[m].w), dy[m]));
      sent = fma4(sent, mix[m], dy[m]);
      dmix[m] = fma4(dmix[m], dy[m], difference);
    }
    if (row > begin) store4(shift.dx + at - width, row > first ? add4(kept, sent) : kept);
    kept = all;
    previous = x;
  }
  if (end == shift.rows) {
    if (shift.from_after != nullptr) kept = add4(kept, load4(shift.from_after + c));
  } else if (end < next) {
#pragma unroll
    for (int m = 0; m < kM; ++m) kept = fma4(kept, mix[m], load4(shift.dy[m] + end * width + c));
  }
  store4(shift.dx + (end - 1) * width + c, kept);
  if (shift.partials == nullptr) return;
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    store4(shift.partials + (static_cast<int64_t>(blockIdx.y) * kM + m) * width + c, dmix[m]);
  }
}

/// What the first row sends to the one before, on its own: from_after, which may lie in the same place, has
/// been read.
template <int kM>
__global__ void __launch_bounds__(kShiftThreads)
    sent_before_kernel(const __grid_constant__ Shift shift, float* to_before) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int c = 4 * static_cast<int>(blockIdx.x * kShiftThreads + threadIdx.x);
  if (c >= shift.width) return;
  float4 sent = zero4();
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    sent = fma4(sent, load4(shift.mix + static_cast<int64_t>(m) * shift.width + c), load4(shift.dy[m] + c));
  }
  store4(to_before + c, sent);
}

template <int kM>
void shift_backward(Gpu& gpu, Shift shift, float* dmix, float* to_before) {
  const unsigned column_blocks = blocks_for(shift.width, 4 * kShiftThreads);
  const RowPieces pieces(gpu, shift.rows, column_blocks, kShiftBlocks);
  shift.piece = pieces.rows;
  if (dmix != nullptr) {
    shift.partials =
        gpu.scratch().take(DType::f32, {pieces.count, kM, int64_t{shift.width}}).template as<float>();
  }
  launch(gpu, {{column_blocks, static_cast<unsigned>(pieces.count)}, kShiftThreads},
         token_shift_backward_kernel<kM>, shift);
  if (to_before != nullptr) {
    launch(gpu, {column_blocks, kShiftThreads}, sent_before_kernel<kM>, shift, to_before);
  }
  if (dmix == nullptr) return;
  std::array<float*, kM> to;
  for (int m = 0; m < kM; ++m) to[static_cast<size_t>(m)] = dmix + static_cast<int64_t>(m) * shift.width;
  add_parameter_sums(gpu, shift.partials, pieces.count, shift.width, to);
}

}  // namespace

void add_parameter_sums(Gpu& gpu, const float* partials, int64_t count, int64_t width,
                        std::span<float* const> to) {
  RWKVX_ASSERT(to.size() <= kSummedParameters);
  SumTargets targets{};
  std::copy(to.begin(), to.end(), targets.to);
  const auto columns = static_cast<int>(width * static_cast<int64_t>(to.size()));
  launch(gpu, {blocks_for(columns, kSumColumns), {kSumColumns, kSumGroups}}, add_parameter_sums_kernel,
         partials, static_cast<int>(count), static_cast<int>(width), columns, targets);
}

void embed_backward(Gpu& gpu, std::span<const int32_t> tokens, ConstView dy, View dtable) {
  if (tokens.empty()) return;
  const int width = static_cast<int>(dy.dim(1));
  RWKVX_ASSERT(width % 4 == 0 && tokens.size() <= INT32_MAX);
  // Rows sorted by token, equal ones in order.
  std::vector<int32_t> ends(static_cast<size_t>(dtable.dim(0)) + 1, 0);
  for (const int32_t token : tokens) ++ends[static_cast<size_t>(token) + 1];
  for (size_t v = 1; v < ends.size(); ++v) ends[v] += ends[v - 1];
  std::vector<int32_t> sorted(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    sorted[static_cast<size_t>(ends[static_cast<size_t>(tokens[i])]++)] = static_cast<int32_t>(i);
  }
  std::vector<EmbedSegment> segments, frequent;
  int32_t partials = 0;
  for (int32_t v = 0, begin = 0; v < static_cast<int32_t>(dtable.dim(0)); ++v) {
    const int32_t end = ends[static_cast<size_t>(v)], first = partials;
    const bool one = end - begin <= kSegmentRows;
    for (; begin < end; begin += std::min<int32_t>(kSegmentRows, end - begin)) {
      segments.push_back({begin, std::min<int32_t>(kSegmentRows, end - begin), v, one ? -1 : partials++});
    }
    if (partials > first) frequent.push_back({first, partials - first, v, -1});
  }
  const Arena::Scope scope(gpu.scratch());
  float* sums =
      partials > 0 ? gpu.scratch().take(DType::f32, {int64_t{partials}, dy.dim(1)}).as<float>() : nullptr;
  const auto* all = scratch_copy(gpu, std::span<const EmbedSegment>(segments));
  const auto* rows = scratch_copy(gpu, std::span<const int32_t>(sorted));
  const auto* tokens_of_sums = scratch_copy(gpu, std::span<const EmbedSegment>(frequent));
  launch(gpu, {static_cast<unsigned>(segments.size()), kEmbedThreads}, embed_segments_kernel, all, rows,
         dy.as<float>(), width, dtable.as<float>(), sums);
  if (frequent.empty()) return;
  launch(gpu, {{static_cast<unsigned>(frequent.size()), blocks_for(width, kEmbedColumns)}, kEmbedColumns / 4},
         embed_partials_kernel, tokens_of_sums, sums, width, dtable.as<float>());
}

void layer_norm_backward(Gpu& gpu, const LayerNormBackward& call) {
  const int64_t rows = call.x.dim(0), width = call.x.dim(1);
  RWKVX_ASSERT(width % 4 == 0 && width <= 4 * 8 * kNormThreads);
  if (rows == 0) return;
  const int vectors = width <= 1024 ? 1 : width <= 4096 ? 2 : width <= 8192 ? 4 : 8;
  const unsigned threads = blocks_for(width, 4 * vectors * 32) * 32;
  // As the registers of a multiprocessor allow.
  const int resident_threads = vectors == 1 ? 1536 : vectors == 2 ? 1024 : 512;
  const int64_t resident = std::max(1, resident_threads / static_cast<int>(threads));
  const auto blocks = static_cast<unsigned>(std::min(rows, gpu.multiprocessors() * resident));
  const Arena::Scope scope(gpu.scratch());
  Norm norm{call.x.as<float>(),
            call.gain.as<float>(),
            call.dy.as<float>(),
            call.dx.as<float>(),
            call.eps,
            call.add,
            rows,
            static_cast<int>(width),
            nullptr};
  if (call.dgain || call.dbias) {
    norm.partials = gpu.scratch().take(DType::f32, {int64_t{blocks}, 2, width}).as<float>();
  }
  const auto run = [&](auto* kernel) { launch(gpu, {blocks, threads}, kernel, norm); };
  if (vectors == 1) run(layer_norm_backward_kernel<1>);
  if (vectors == 2) run(layer_norm_backward_kernel<2>);
  if (vectors == 4) run(layer_norm_backward_kernel<4>);
  if (vectors == 8) run(layer_norm_backward_kernel<8>);
  if (norm.partials == nullptr) return;
  const std::array<float*, 2> to{static_cast<float*>(call.dgain.data()),
                                 static_cast<float*>(call.dbias.data())};
  add_parameter_sums(gpu, norm.partials, blocks, width, to);
}

void token_shift_backward(Gpu& gpu, const TokenShiftBackward& call) {
  const int64_t rows = call.x.dim(0), width = call.x.dim(1);
  RWKVX_ASSERT(width % 4 == 0 && call.dy.size() <= kMixes);
  if (rows == 0) return;
  const Arena::Scope scope(gpu.scratch());
  Shift shift{};
  shift.x = call.x.as<float>();
  shift.mix = call.mix.as<float>();
  shift.before = static_cast<const float*>(call.around.before.data());
  shift.from_after = static_cast<const float*>(call.around.from_after.data());
  for (size_t m = 0; m < call.dy.size(); ++m) shift.dy[m] = call.dy[m].as<float>();
  shift.dx = call.dx.as<float>();
  shift.offsets = scratch_copy(gpu, call.offsets);
  shift.sequences = static_cast<int>(call.offsets.size()) - 1;
  shift.rows = rows;
  shift.width = static_cast<int>(width);
  auto* dmix = static_cast<float*>(call.dmix.data());
  auto* to_before = static_cast<float*>(call.around.to_before.data());
  switch (call.dy.size()) {
    case 1:
      return shift_backward<1>(gpu, shift, dmix, to_before);
    case 2:
      return shift_backward<2>(gpu, shift, dmix, to_before);
    case 3:
      return shift_backward<3>(gpu, shift, dmix, to_before);
    case 4:
      return shift_backward<4>(gpu, shift, dmix, to_before);
    case 5:
      return shift_backward<5>(gpu, shift, dmix, to_before);
    case 6:
      return shift_backward<6>(gpu, shift, dmix, to_before);
    default:
      RWKVX_ASSERT(!"1 to 6 mixes");
  }
}

}  // namespace rwkvx::cuda
