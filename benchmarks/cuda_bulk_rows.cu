// Products of one row whose weights come by bulk copies into shared memory, a warp to a row of weights with x
// in its registers: a design for src/ops/cuda/few_rows_one.cu (docs/decisions/0015), in the chain of a
// token's kernels that benchmarks/cuda_read_chain.cu has for reads alone. A line of JSON each; results are
// compared with plain sums.
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a -I src -I src/ops/cuda/native
//     benchmarks/cuda_bulk_rows.cu -o cuda_bulk_rows
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cuda_chain.h"
#include "ops/cuda/few_rows_norm.h"
#include "ops/cuda/kernel.h"

namespace rwkvx::cuda {
namespace {

constexpr int kIn = 2560, kRowBytes = 2 * kIn, kQuads = kIn / 8 / 32;  // of a lane
constexpr int kMultiprocessors = 132;
constexpr int64_t kWeightBytes = int64_t{6400} << 20, kMostRows = kWeightBytes / kRowBytes;

struct Product {
  const unsigned char* weights;  // [rows, kIn] bfloat16
  int rows;
  const Bf16* x;  // what an earlier kernel wrote, or with a norm nothing
  float* y;
  bool ahead;  // weights are asked for before the kernel before has ended
  RowNorm norm;
  const float* mix;
};

/// kSlots: rows of weights that a warp has under way.
template <int kWarps, int kSlots, int kBlocks, bool kNorm>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) bulk_rows_kernel(const __grid_constant__ Product op) {
  __shared__ uint64_t full[kWarps][kSlots];
  allow_next_kernel();
  auto* const memory = dynamic_shared<unsigned char>();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32,
            blocks = static_cast<int>(gridDim.x), stride = kWarps * blocks;
  unsigned char* const ring = memory + warp * kSlots * kRowBytes;
  if (!op.ahead) wait_for_previous_kernel();
  const auto fetch = [&](int row, int slot) {
    if (row >= op.rows) return;
    asm volatile(
        "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&full[warp][slot])),
        "r"(kRowBytes)
        : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(ring + slot * kRowBytes)),
        "l"(op.weights + static_cast<int64_t>(row) * kRowBytes), "r"(kRowBytes),
        "r"(shared_address(&full[warp][slot]))
        : "memory");
  };
  const int first = warp * blocks + static_cast<int>(blockIdx.x);
  if (lane == 0) {
    for (int s = 0; s < kSlots; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&full[warp][s])) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    for (int s = 0; s < kSlots; ++s) fetch(first + s * stride, s);
  }
  __syncwarp();
  float x[8 * kQuads];
  const auto take = [&](const Bf16* from) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const uint4 v = *reinterpret_cast<const uint4*>(from + 8 * (32 * i + lane));
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        x[8 * i + 2 * j] = low_bf16(words[j]);
        x[8 * i + 2 * j + 1] = high_bf16(words[j]);
      }
    }
  };
  if constexpr (kNorm) {
    auto* const floats = reinterpret_cast<float*>(memory + kWarps * kSlots * kRowBytes);
    __shared__ bool has_all_read;
    BlockNorm<32 * kWarps> norm(op.norm, floats);
    norm.prefetch(op.mix);
    wait_for_previous_kernel();
    norm.normalise();
    if (threadIdx.x == 0) has_all_read = norm.has_read(blocks);
    auto* const mixed = reinterpret_cast<Bf16*>(floats + kNormBuffers * kIn);
    norm.put(op.mix, op.mix, mixed);
    __syncthreads();
    take(mixed);
    if (has_all_read) norm.finish();
  } else {
    wait_for_previous_kernel();
    take(op.x);
  }
  int slot = 0, phase = 0;
  for (int row = first; row < op.rows; row += stride) {
    asm volatile(
        "{\n.reg .pred p;\nwaiting: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra "
        "waiting;\n}" ::"r"(shared_address(&full[warp][slot])),
        "r"(phase)
        : "memory");
    const auto* const w = reinterpret_cast<const uint4*>(ring + slot * kRowBytes) + lane;
    float sums[4] = {};
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      const uint4 v = w[32 * i];
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sums[j] = fmaf(low_bf16(words[j]), x[8 * i + 2 * j], sums[j]);
        sums[j] = fmaf(high_bf16(words[j]), x[8 * i + 2 * j + 1], sums[j]);
      }
    }
    __syncwarp();
    if (lane == 0) fetch(row + kSlots * stride, slot);
    const float sum = warp_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (lane == 0) op.y[row] = sum;
    if (++slot == kSlots) slot = 0, phase ^= 1;
  }
}

/// y[row], as it should be; a warp to a row.
__global__ void plain_kernel(const unsigned char* weights, const Bf16* x, int rows, float* y) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const auto* w = reinterpret_cast<const Bf16*>(weights + static_cast<int64_t>(row) * kRowBytes);
  float sum = 0.0f;
  for (int i = lane; i < kIn; i += 32) sum = fmaf(to_float(w[i]), to_float(x[i]), sum);
  sum = warp_sum(sum);
  if (lane == 0) y[row] = sum;
}

__global__ void fill_kernel(uint32_t* to, int64_t words, uint32_t seed) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= words) return;
  const auto number = [&](uint32_t salt) {
    uint32_t h = (static_cast<uint32_t>(i) * 2654435761u) ^ seed ^ salt;
    h ^= h >> 15, h *= 2246822519u, h ^= h >> 13;
    return (static_cast<float>(h & 0xffffu) - 32768.0f) * (1.0f / 1048576.0f);  // within 1 / 32
  };
  to[i] = pack_bf16(number(1), number(2));
}

/// What a norm or a step of the recurrence takes: a block that reads, adds up twice, writes.
__global__ void __launch_bounds__(640) small_kernel(const float* x, Bf16* y) {
  __shared__ float scratch[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int c = 4 * static_cast<int>(threadIdx.x);
  const float4 v = load4(x + c);
  const float mean = block_sum((v.x + v.y) + (v.z + v.w), scratch) / kIn;
  const float squares = block_sum((v.x - mean) * (v.x - mean) + (v.y - mean) * (v.y - mean), scratch);
  const float scale = 1.0f / sqrtf(squares / kIn + 1e-5f);
  store4(y + c, make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale));
}

class Chain {
 public:
  Chain() {
    check(cudaStreamCreate(&stream_));
    check(cudaMalloc(&weights_, kWeightBytes));
    check(cudaMalloc(&y_, kMostRows * sizeof(float)));
    check(cudaMalloc(&plain_, kMostRows * sizeof(float)));
    check(cudaMalloc(&x_, kRowBytes));
    check(cudaMalloc(&floats_, 5 * sizeof(float) * kIn));
    check(cudaMalloc(&ticket_, sizeof(int32_t)));
    check(cudaMemset(ticket_, 0, sizeof(int32_t)));
    const int64_t words = kWeightBytes / 4;
    fill_kernel<<<static_cast<unsigned>((words + 255) / 256), 256, 0, stream_>>>(
        reinterpret_cast<uint32_t*>(weights_), words, 1);
    fill_kernel<<<5, 256, 0, stream_>>>(reinterpret_cast<uint32_t*>(x_), kIn / 2, 2);
    std::vector<float> host(5 * kIn);
    for (size_t i = 0; i < host.size(); ++i) host[i] = std::sin(static_cast<float>(i));
    check(cudaMemcpy(floats_, host.data(), host.size() * sizeof(float), cudaMemcpyHostToDevice));
    check(cudaStreamSynchronize(stream_));
  }

  template <int kWarps, int kSlots, int kBlocks>
  void measure() {
    const std::string how = "bulk rows, " + std::to_string(kBlocks) + " x " + std::to_string(kWarps) +
                            " warps, " + std::to_string(kSlots) + " rows each";
    const auto plain = [&](int rows, bool ahead) { product<kWarps, kSlots, kBlocks, false>(rows, ahead); };
    const auto normed = [&](int rows) { product<kWarps, kSlots, kBlocks, true>(rows, true); };
    at_ = 0;
    plain(10240, true);
    const double apart = difference(10240);
    timed(
        how, "one kernel", [&] { plain(1250000, true); }, apart);
    for (const int rows : {10240, 2560}) {
      timed(
          how, std::to_string(rows) + " rows a kernel, 120 of them",
          [&] {
            for (int i = 0; i < 120; ++i) plain(rows, true);
          },
          apart);
    }
    timed(
        how, "10240 rows a kernel with their norm, 120 of them",
        [&] {
          for (int i = 0; i < 120; ++i) normed(10240);
        },
        apart);
    for (const bool within : {false, true}) {
      timed(
          how,
          std::string("40 blocks: ") + (within ? "norm within, " : "norm, ") + "9000 rows, small, 2560, " +
              (within ? "norm within, " : "norm, ") + "10240, 5120 known only then",
          [&] {
            for (int i = 0; i < 40; ++i) {
              if (within) {
                normed(9000);
              } else {
                small(), plain(9000, true);
              }
              small();
              plain(2560, true);
              if (within) {
                normed(10240);
              } else {
                small(), plain(10240, true);
              }
              plain(5120, false);
            }
          },
          apart);
    }
  }

 private:
  template <int kWarps, int kSlots, int kBlocks, bool kNorm>
  void product(int rows, bool ahead) {
    const int64_t bytes = static_cast<int64_t>(rows) * kRowBytes;
    if (at_ + bytes > kWeightBytes) at_ = 0;
    const Product op{weights_ + at_,
                     rows,
                     x_,
                     y_,
                     ahead,
                     {floats_, floats_ + kIn, floats_ + 2 * kIn, floats_ + 3 * kIn, ticket_, 1e-5f, kIn},
                     floats_ + 4 * kIn};
    at_ += bytes, bytes_ += bytes;
    const size_t shared =
        size_t{kWarps} * kSlots * kRowBytes + (kNorm ? kNormBuffers * sizeof(float) * kIn + kRowBytes : 0);
    launch(std::min(kBlocks * kMultiprocessors, (rows + kWarps - 1) / kWarps), 32 * kWarps, shared,
           bulk_rows_kernel<kWarps, kSlots, kBlocks, kNorm>, op);
  }
  void small() { launch(1, 640, 0, small_kernel, static_cast<const float*>(floats_), x_); }

  template <typename... Parameters, typename... Arguments>
  void launch(int blocks, int threads, size_t shared, void (*kernel)(Parameters...), Arguments... arguments) {
    launch_in_chain(stream_, true, blocks, threads, shared, kernel, arguments...);
  }

  /// ‖y − plain sums‖ / ‖plain sums‖ of the first rows.
  double difference(int rows) {
    plain_kernel<<<(rows + 7) / 8, 256, 0, stream_>>>(weights_, x_, rows, plain_);
    std::vector<float> got(static_cast<size_t>(rows)), right(got.size());
    check(cudaStreamSynchronize(stream_));
    check(cudaMemcpy(got.data(), y_, got.size() * sizeof(float), cudaMemcpyDeviceToHost));
    check(cudaMemcpy(right.data(), plain_, right.size() * sizeof(float), cudaMemcpyDeviceToHost));
    double apart = 0, whole = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      apart += (got[i] - right[i]) * (got[i] - right[i]);
      whole += right[i] * right[i];
    }
    return std::sqrt(apart / whole);
  }

  void timed(const std::string& how, const std::string& what, const std::function<void()>& work,
             double apart) {
    at_ = bytes_ = 0;
    const double median = milliseconds_of(stream_, work);
    std::printf(
        "{\"what\": \"products in a chain\", \"how\": \"%s\", \"chain\": \"%s\", \"milliseconds\": %.4f, "
        "\"gb_per_s\": %.0f, \"apart\": %.2g}\n",
        how.c_str(), what.c_str(), median, 1e-6 * static_cast<double>(bytes_) / median, apart);
    std::fflush(stdout);
  }

  cudaStream_t stream_;
  unsigned char* weights_;
  float *y_, *plain_, *floats_;
  Bf16* x_;
  int32_t* ticket_;
  int64_t at_ = 0, bytes_ = 0;
};

}  // namespace
}  // namespace rwkvx::cuda

int main() {
  rwkvx::cuda::Chain chain;
  chain.measure<16, 2, 1>();
  chain.measure<16, 1, 1>();
  chain.measure<12, 2, 1>();
  chain.measure<8, 4, 1>();
  chain.measure<8, 2, 1>();
  return 0;
}
