// What this GPU's memory gives to kernels that come one after another and read their weights once, as the
// products of a decoded token do: the bound of decoding, and what of it is the way of reading. A line of JSON
// each.
//   nvcc -std=c++20 -O3 -gencode arch=compute_90a,code=sm_90a benchmarks/cuda_read_chain.cu -o
//   cuda_read_chain
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "cuda_chain.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256, kMultiprocessors = 132;
constexpr int64_t kRowBytes = 5120, kTileBytes = 16 * kRowBytes;  // 2560 bfloat16
constexpr int64_t kWeightBytes = int64_t{6400} << 20, kMostPart = int64_t{64} << 20;

extern __shared__ __align__(128) unsigned char dynamic_bytes[];

__device__ uint32_t address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ void allow_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ uint32_t folded(uint4 v) { return v.x ^ v.y ^ v.z ^ v.w; }

struct Part {
  const unsigned char* weights;
  int tiles;
  const uint32_t* x;  // what the kernel before wrote
  uint32_t* y;
  bool ahead;  // weights are asked for before that kernel has ended
};

__device__ void finish(const Part& part, uint32_t sum, uint32_t x) {
  if (sum == 12345) part.y[threadIdx.x] = sum;  // so that nothing is left out
  if (blockIdx.x == 0) part.y[threadIdx.x] = x + 1;
}

/// 20 loads of 16 bytes in a thread's registers; a warp reads 64 bytes of 8 rows at once.
__global__ void __launch_bounds__(kThreads, 2) registers_kernel(Part part) {
  allow_next();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (!part.ahead) wait_for_previous();
  uint4 w[20];
  const auto load = [&](int tile) {
    const unsigned char* from =
        part.weights + tile * kTileBytes + lane / 4 * kRowBytes + warp * 64 + lane % 4 * 16;
#pragma unroll
    for (int i = 0; i < 20; ++i) {
      const void* p = from + i % 2 * 8 * kRowBytes + i / 2 * 512;
      asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(w[i].x), "=r"(w[i].y), "=r"(w[i].z), "=r"(w[i].w)
                   : "l"(p));
    }
  };
  int tile = static_cast<int>(blockIdx.x);
  if (tile < part.tiles) load(tile);
  if (part.ahead) wait_for_previous();
  const uint32_t x = *static_cast<const volatile uint32_t*>(part.x + threadIdx.x);
  uint32_t sum = 0;
  for (; tile < part.tiles; tile += gridDim.x) {
#pragma unroll
    for (int i = 0; i < 20; ++i) sum ^= folded(w[i]) * x;
    if (tile + static_cast<int>(gridDim.x) < part.tiles) load(tile + gridDim.x);
  }
  finish(part, sum, x);
}

/// cp.async into a ring of kStages pairs of loads in shared memory.
template <int kStages>
__global__ void __launch_bounds__(kThreads) async_kernel(Part part) {
  allow_next();
  uint4* const ring = reinterpret_cast<uint4*>(dynamic_bytes) + threadIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (!part.ahead) wait_for_previous();
  int tile = static_cast<int>(blockIdx.x), step = 0;
  const auto fetch = [&](int slot) {
    if (step == 10) step = 0, tile += gridDim.x;
    if (tile < part.tiles) {
      const unsigned char* from =
          part.weights + tile * kTileBytes + lane / 4 * kRowBytes + warp * 64 + lane % 4 * 16 + step++ * 512;
      for (int i = 0; i < 2; ++i) {
        asm volatile(
            "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(ring + (2 * slot + i) * kThreads)),
            "l"(from + i * 8 * kRowBytes)
            : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int s = 0; s < kStages; ++s) fetch(s);
  if (part.ahead) wait_for_previous();
  const uint32_t x = *static_cast<const volatile uint32_t*>(part.x + threadIdx.x);
  uint32_t sum = 0;
  int slot = 0;
  for (int mine = static_cast<int>(blockIdx.x); mine < part.tiles; mine += gridDim.x) {
    for (int i = 0; i < 10; ++i) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 1) : "memory");
      sum ^= (folded(ring[2 * slot * kThreads]) ^ folded(ring[(2 * slot + 1) * kThreads])) * x;
      fetch(slot);
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
  }
  finish(part, sum, x);
}

/// Copies of kPiece consecutive bytes by the copy engine into a ring of `stages` of them.
template <int kPiece>
__global__ void __launch_bounds__(kThreads) bulk_kernel(Part part, int stages) {
  allow_next();
  __shared__ uint64_t full[32];
  const int pieces = static_cast<int>(part.tiles * kTileBytes / kPiece);
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(full + s)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (!part.ahead) wait_for_previous();
  const auto fetch = [&](int piece, int slot) {
    if (threadIdx.x != 0 || piece >= pieces) return;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(full + slot)),
                 "r"(kPiece)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            address(dynamic_bytes + slot * kPiece)),
        "l"(part.weights + static_cast<int64_t>(piece) * kPiece), "r"(kPiece), "r"(address(full + slot))
        : "memory");
  };
  for (int s = 0; s < stages; ++s) fetch(blockIdx.x + s * gridDim.x, s);
  if (part.ahead) wait_for_previous();
  const uint32_t x = *static_cast<const volatile uint32_t*>(part.x + threadIdx.x);
  uint32_t sum = 0;
  int slot = 0, phase = 0;
  for (int piece = static_cast<int>(blockIdx.x); piece < pieces; piece += gridDim.x) {
    asm volatile(
        "{\n.reg .pred p;\nwaiting: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra "
        "waiting;\n}" ::"r"(address(full + slot)),
        "r"(phase)
        : "memory");
    for (int i = 0; i < kPiece / 16 / kThreads; ++i) {
      sum ^= folded(reinterpret_cast<uint4*>(dynamic_bytes + slot * kPiece)[i * kThreads + threadIdx.x]) * x;
    }
    __syncthreads();
    fetch(piece + stages * gridDim.x, slot);
    if (++slot == stages) slot = 0, phase ^= 1;
  }
  finish(part, sum, x);
}

/// What a norm of one row takes: a block that reads, adds up twice, writes.
__global__ void __launch_bounds__(640) small_kernel(const uint32_t* x, uint32_t* y) {
  __shared__ float scratch[32];
  allow_next();
  wait_for_previous();
  float v = __uint_as_float(*static_cast<const volatile uint32_t*>(x + threadIdx.x) & 0x3fffffff);
  for (int round = 0; round < 2; ++round) {
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x % 32 < 20 ? scratch[threadIdx.x % 32] : 0.0f;
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
  }
  y[threadIdx.x] = __float_as_uint(v);
}

class Chain {
 public:
  Chain() {
    check(cudaStreamCreate(&stream_));
    check(cudaMalloc(&weights_, kWeightBytes));
    check(cudaMalloc(&x_, 1 << 20));
    check(cudaMemset(x_, 1, 1 << 20));
    std::vector<uint32_t> random(kMostPart / 4);
    uint32_t state = 1;
    for (uint32_t& word : random) word = state = state * 1664525 + 1013904223;
    for (int64_t at = 0; at < kWeightBytes; at += kMostPart) {
      check(cudaMemcpy(weights_ + at, random.data(), kMostPart, cudaMemcpyHostToDevice));
    }
  }

  using Read = std::function<void(const Part&)>;
  void measure(const std::string& how, const Read& read) {
    const int64_t whole = kWeightBytes / kTileBytes * kTileBytes;
    timed(how, "one kernel", [&] { part(read, whole, true); });
    for (const int64_t megabytes : {50, 40, 13}) {
      for (const bool ahead : {false, true}) {
        dependent_ = ahead;
        timed(how,
              std::to_string(megabytes) + " MB a kernel" +
                  (ahead ? ", asked for while the one before ends" : ", one behind another"),
              [&] {
                for (int i = 0; i < 120; ++i) part(read, megabytes * 1000000, ahead);
              });
      }
    }
    dependent_ = true;
    for (const bool chosen : {false, true}) {
      timed(how,
            std::string("40 blocks of 43, 3, small, 13, small, 52, 26") +
                (chosen ? " (only then known)" : "") + ", small",
            [&] {
              for (int i = 0; i < 40; ++i) {
                part(read, 43000000, true);
                part(read, 3000000, true);
                small();
                part(read, 13000000, true);
                small();
                part(read, 52000000, true);
                part(read, 26000000, !chosen);
                small();
              }
            });
    }
  }

  template <typename... Parameters, typename... Arguments>
  void launch(int blocks, int threads, int shared, void (*kernel)(Parameters...), Arguments... arguments) {
    launch_in_chain(stream_, dependent_, blocks, threads, shared, kernel, arguments...);
  }

 private:
  void part(const Read& read, int64_t bytes, bool ahead) {
    bytes = bytes / kTileBytes * kTileBytes;
    if (at_ + bytes > kWeightBytes) at_ = 0;
    read({weights_ + at_, static_cast<int>(bytes / kTileBytes), x_, x_ + 4096, ahead});
    at_ += bytes;
    bytes_ += bytes;
  }
  void small() { launch(1, 640, 0, small_kernel, x_, x_ + 4096); }

  void timed(const std::string& how, const std::string& what, const std::function<void()>& work) {
    at_ = bytes_ = 0;
    const double median = milliseconds_of(stream_, work);
    std::printf(
        "{\"what\": \"reads in a chain\", \"how\": \"%s\", \"chain\": \"%s\", \"milliseconds\": %.4f, "
        "\"gb_per_s\": %.0f}\n",
        how.c_str(), what.c_str(), median, 1e-6 * static_cast<double>(bytes_) / median);
    std::fflush(stdout);
  }

  cudaStream_t stream_;
  unsigned char* weights_;
  uint32_t* x_;
  int64_t at_ = 0, bytes_ = 0;
  bool dependent_ = true;
};

}  // namespace
}  // namespace rwkvx::cuda

int main() {
  using namespace rwkvx::cuda;
  Chain chain;
  const auto blocks = [](const Part& part, int each) {
    return static_cast<int>(std::min<int64_t>(each * kMultiprocessors, part.tiles));
  };
  chain.measure("registers, 2 blocks of 82 KB", [&](const Part& part) {
    chain.launch(blocks(part, 2), kThreads, 0, registers_kernel, part);
  });
  chain.measure("cp.async, 2 blocks of 32 KB", [&](const Part& part) {
    chain.launch(blocks(part, 2), kThreads, 4 * 8192, async_kernel<4>, part);
  });
  chain.measure("cp.async, 2 blocks of 82 KB", [&](const Part& part) {
    chain.launch(blocks(part, 2), kThreads, 10 * 8192, async_kernel<10>, part);
  });
  chain.measure("bulk copies of 16 KB, 2 blocks of 32 KB", [&](const Part& part) {
    chain.launch(2 * kMultiprocessors, kThreads, 2 * 16384, bulk_kernel<16384>, part, 2);
  });
  chain.measure("bulk copies of 16 KB, 2 blocks of 98 KB", [&](const Part& part) {
    chain.launch(2 * kMultiprocessors, kThreads, 6 * 16384, bulk_kernel<16384>, part, 6);
  });
  chain.measure("bulk copies of 16 KB, 1 block of 197 KB", [&](const Part& part) {
    chain.launch(kMultiprocessors, kThreads, 12 * 16384, bulk_kernel<16384>, part, 12);
  });
  return 0;
}
