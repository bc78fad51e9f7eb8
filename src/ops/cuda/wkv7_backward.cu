#include "ops/cuda/kernels.h"
#include "ops/cuda/wkv7_chunks.h"
#include "ops/cuda/wkv7_sequences.h"

/// The backward token by token, exact; finite, and right, also where w is 0.
namespace rwkvx::cuda {
namespace {

// A warp has 4 rows of a head's state, a lane columns 2 l and 2 l + 1 of them.
constexpr int kRowsOfWarp = 4;
constexpr int kWarps = kHead / kRowsOfWarp;
constexpr int kThreads = 32 * kWarps;
constexpr int kTokens = 4;  // whose sums over rows are added up together
enum Sum { kDr, kDw, kDk, kDa, kDb, kSums };

struct Outputs {
  float *dr, *dw, *dk, *dv, *da, *db;
};

/// The warps' parts of sums over rows.
struct Parts {
  float2 parts[kTokens][kSums][kWarps][kHead / 2];
};

__device__ __forceinline__ float2 columns(const float* row, int lane) {
  return reinterpret_cast<const float2*>(row)[lane];
}
__device__ __forceinline__ void add(float2& sum, float2 x, float y) {
  sum.x = fmaf(x.x, y, sum.x);
  sum.y = fmaf(x.y, y, sum.y);
}

/// Sums over the warps, into the outputs: [t, C], the first token at `at`.
__device__ __forceinline__ void add_parts(const Parts& parts, const Outputs& out, int64_t at, int stride,
                                          int tokens) {
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kSums * kHead; i += kThreads) {
    const int t = i / (kSums * kHead), which = i / kHead % kSums, column = i % kHead;
    if (t >= tokens) continue;
    const float* part = reinterpret_cast<const float*>(parts.parts[t][which]) + column;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += part[w * kHead];
    const int64_t to = at + static_cast<int64_t>(t) * stride + column;
    switch (which) {
      case kDr:
        out.dr[to] += sum;
        break;
      case kDw:
        out.dw[to] = sum;
        break;
      case kDk:
        out.dk[to] += sum;
        break;
      case kDa:
        out.da[to] = sum;
        break;
      default:
        out.db[to] = sum;
    }
  }
}

/// A block does (sequence, head) after (sequence, head). `rerun` [blocks, kWkv7Rows, N, N]: the states before
/// the tokens of an interval; each thread reads what it wrote.
__global__ void __launch_bounds__(kThreads)
    recurrence_backward_kernel(Wkv7Inputs in, const float* dy, Wkv7Sequences sequences, int stride,
                               const float* kept, Outputs out, float2* rerun) {
  Parts& parts = *dynamic_shared<Parts>();
  allow_next_kernel();
  wait_for_previous_kernel();
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int heads = stride / kHead, first_row = warp * kRowsOfWarp;
  const int element = first_row * (kHead / 2) + lane;  // in pairs; the next row's is kHead / 2 further
  constexpr int kRowPairs = kHead / 2, kStatePairs = kStateElements / 2;
  float2* const states = rerun + static_cast<int64_t>(blockIdx.x) * kWkv7Rows * kStatePairs + element;
  for (int item = static_cast<int>(blockIdx.x); item < sequences.count * heads;
       item += static_cast<int>(gridDim.x)) {
    const Wkv7Sequence& sequence = sequences.all[item / heads];
    const int head = item % heads;
    float2* const dstate =
        sequence.state == nullptr
            ? nullptr
            : reinterpret_cast<float2*>(sequence.state + static_cast<int64_t>(head) * kStateElements) +
                  element;
    float2 g[kRowsOfWarp];
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      g[i] = dstate == nullptr ? make_float2(0, 0) : dstate[i * kRowPairs];
    }
    for (int64_t interval = (sequence.rows - 1) / kWkv7Rows; interval >= 0; --interval) {
      const int64_t at = (sequence.begin + interval * kWkv7Rows) * stride + head * kHead;
      const int tokens =
          static_cast<int>(min(static_cast<int64_t>(kWkv7Rows), sequence.rows - interval * kWkv7Rows));
      float2 s[kRowsOfWarp];
      const float2* const from =
          reinterpret_cast<const float2*>(kept + ((sequence.first_interval + interval) * heads + head) *
                                                     kStateElements) +
          element;
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) s[i] = from[i * kRowPairs];
      float removed[kWkv7Rows / 32 * kRowsOfWarp];  // u of the four rows; lane t has token t's
      for (int t = 0; t < tokens; ++t) {
        const int64_t row = at + static_cast<int64_t>(t) * stride;
        const float2 a = columns(in.a + row, lane), b = columns(in.b + row, lane),
                     w = columns(in.w + row, lane), k = columns(in.k + row, lane);
        const float4 v = load4(in.v + row + first_row);
        float products[4];
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i) {
          states[t * kStatePairs + i * kRowPairs] = s[i];
          products[i] = fmaf(s[i].x, a.x, s[i].y * a.y);
        }
        const float sum = sum_of_four<32>(products, lane);
        const float vs[kRowsOfWarp] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i) {
          const float u = __shfl_sync(kAllLanes, sum, i);
          if (lane == t) removed[i] = u;
          s[i].x = fmaf(u, b.x, fmaf(s[i].x, w.x, vs[i] * k.x));
          s[i].y = fmaf(u, b.y, fmaf(s[i].y, w.y, vs[i] * k.y));
        }
      }
      for (int last = tokens; last > 0; last -= kTokens) {
        const int first = max(last - kTokens, 0);
        __syncthreads();  // the parts have been added up
        for (int t = last - 1; t >= first; --t) {
          const int64_t row = at + static_cast<int64_t>(t) * stride;
          const float2 a = columns(in.a + row, lane), b = columns(in.b + row, lane),
                       w = columns(in.w + row, lane), k = columns(in.k + row, lane),
                       r = columns(in.r + row, lane);
          const float4 v = load4(in.v + row + first_row), y = load4(dy + row + first_row);
          const float vs[kRowsOfWarp] = {v.x, v.y, v.z, v.w}, ys[kRowsOfWarp] = {y.x, y.y, y.z, y.w};
          float2 sums[kSums] = {};
          float to_u[4], to_v[4];
#pragma unroll
          for (int i = 0; i < kRowsOfWarp; ++i) {
            add(sums[kDr], s[i], ys[i]);
            add(g[i], r, ys[i]);
            add(sums[kDk], g[i], vs[i]);
            to_u[i] = fmaf(g[i].x, b.x, g[i].y * b.y);
            to_v[i] = fmaf(g[i].x, k.x, g[i].y * k.y);
          }
          const float du_of_row = sum_of_four<32>(to_u, lane), dv_of_row = sum_of_four<32>(to_v, lane);
          if (lane < kRowsOfWarp) out.dv[row + first_row + lane] += dv_of_row;
#pragma unroll
          for (int i = 0; i < kRowsOfWarp; ++i) {
            const float du = __shfl_sync(kAllLanes, du_of_row, i), u = __shfl_sync(kAllLanes, removed[i], t);
            s[i] = states[t * kStatePairs + i * kRowPairs];
            add(sums[kDb], g[i], u);
            add(sums[kDa], s[i], du);
            sums[kDw].x = fmaf(g[i].x, s[i].x, sums[kDw].x);
            sums[kDw].y = fmaf(g[i].y, s[i].y, sums[kDw].y);
            g[i].x = fmaf(g[i].x, w.x, du * a.x);
            g[i].y = fmaf(g[i].y, w.y, du * a.y);
          }
#pragma unroll
          for (int q = 0; q < kSums; ++q) parts.parts[t - first][q][warp][lane] = sums[q];
        }
        __syncthreads();
        add_parts(parts, out, at + static_cast<int64_t>(first) * stride, stride, last - first);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i) {
      if (dstate != nullptr) dstate[i * kRowPairs] = g[i];
    }
    __syncthreads();
  }
}

}  // namespace

void wkv7_backward(Gpu& gpu, const Wkv7Call& call, const Wkv7Gradients& gradients, Precision precision) {
  const int stride = static_cast<int>(call.r.dim(1));
  const int heads = stride / kHead;
  const Outputs out{gradients.dr.as<float>(), gradients.dw.as<float>(), gradients.dk.as<float>(),
                    gradients.dv.as<float>(), gradients.da.as<float>(), gradients.db.as<float>()};
  const auto in_chunks = [&](int64_t rows) {
    return precision == Precision::bf16 && rows >= kWkv7FewestRows;
  };
  for_wkv7_groups(
      call.offsets, gradients.dstates, [&](int64_t rows) { return !in_chunks(rows); },
      [&](const Wkv7Sequences& sequences) {
        const Arena::Scope scope(gpu.scratch());
        const int64_t blocks = std::min<int64_t>(sequences.count * heads, gpu.multiprocessors());
        const View rerun = gpu.scratch().take(DType::f32, {blocks, kWkv7Rows, kStateElements});
        launch(gpu, {static_cast<unsigned>(blocks), kThreads, sizeof(Parts)}, recurrence_backward_kernel,
               inputs_of(call), gradients.dy.as<float>(), sequences, stride, call.kept.as<float>(), out,
               reinterpret_cast<float2*>(rerun.as<float>()));
      });
  for_wkv7_groups(call.offsets, gradients.dstates, in_chunks, [&](const Wkv7Sequences& sequences) {
    wkv7_backward_in_chunks(gpu, call, gradients, sequences);
  });
}

}  // namespace rwkvx::cuda
