#include "ops/cuda/gpu.h"

#include <algorithm>
#include <cstring>

#include "base/assert.h"
#include "base/error.h"
#include "ops/cuda/kernels.h"

namespace rwkvx::cuda {
namespace {

constexpr size_t kTableBytes = size_t{4} << 20;
constexpr size_t kTableAlign = 256;
constexpr int64_t kTickets = 1 << 14;
constexpr size_t kPinnedBytes = size_t{4} << 20;

double gigabytes(size_t bytes) { return static_cast<double>(bytes) * 1e-9; }

}  // namespace

void check(cudaError_t result, std::string_view what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // one failure is told of once
  if (result == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(
        "out of GPU memory ({}): {:.2f} of {:.2f} GB are free; close other programs on this GPU, or use a "
        "smaller or quantised model, --kv host or bounded, a shorter context, or --device cpu",
        what, gigabytes(free), gigabytes(total));
  }
  fail("the GPU failed ({}): {}", what, cudaGetErrorString(result));
}

void* GpuAllocator::allocate(size_t bytes) {
  if (recording_) throw CannotRecord();
  void* block = nullptr;
  const cudaError_t result = cudaMallocAsync(&block, bytes, stream_);
  if (result == cudaErrorMemoryAllocation) {
    check(result, fmt::format("{:.3f} GB were asked for", gigabytes(bytes)));
  }
  check(result, "taking memory");
  check(cudaMemsetAsync(block, 0, bytes, stream_), "clearing memory");
  return block;
}

void GpuAllocator::release(void* block, size_t) noexcept { cudaFreeAsync(block, stream_); }

namespace {

cudaStream_t stream_on(int device) {
  int count = 0;
  const cudaError_t found = cudaGetDeviceCount(&count);
  if (found != cudaSuccess) {
    cudaGetLastError();
    fail("--device cuda: no NVIDIA GPU can be used here ({}); install the driver, or use --device cpu",
         cudaGetErrorString(found));
  }
  if (device >= count) {
    fail("--device cuda:{}: this machine has {} GPU{} (cuda:0{})", device, count, count == 1 ? "" : "s",
         count > 1 ? fmt::format(" to cuda:{}", count - 1) : "");
  }
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking what the GPU is");
  if (properties.major < 8) {
    fail("--device cuda:{}: {} has compute capability {}.{}; 8.0 (Ampere) or newer is needed", device,
         properties.name, properties.major, properties.minor);
  }
  check(cudaSetDevice(device), "choosing the GPU");
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "starting work on the GPU");
  return stream;
}

}  // namespace

Gpu::Gpu(int device)
    : device_(device),
      stream_{stream_on(device)},
      allocator_(stream_.handle, recording_),
      host_memory_(stream_.handle),
      scratch_(allocator_) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device_), "asking what the GPU is");
  multiprocessors_ = properties.multiProcessorCount;
  capability_ = properties.major * 10 + properties.minor;
  dependent_launches_ = capability_ >= 90 && code_architecture() >= 90;
  memory_bytes_ = static_cast<int64_t>(properties.totalGlobalMem);
  name_ = properties.name;
  keep_freed_memory();
  check(cudaMallocHost(&pinned_.data, kPinnedBytes), "taking memory of the host");
  tables_ = Buffer(DType::u8, {static_cast<int64_t>(kTableBytes)}, allocator_);
  tickets_ = Buffer(DType::i32, {kTickets}, allocator_);
}

void Gpu::keep_freed_memory() {
  cudaMemPool_t pool;
  uint64_t all = UINT64_MAX;
  check(cudaDeviceGetDefaultMemPool(&pool, device_), "asking for the GPU's memory pool");
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all), "keeping freed memory");
}

Gpu::Pinned::~Pinned() { cudaFreeHost(data); }

Gpu::Stream::~Stream() {
  cudaStreamSynchronize(handle);
  cudaStreamDestroy(handle);
}

const void* Gpu::table(const void* host, size_t bytes) {
  const size_t needed = (bytes + kTableAlign - 1) / kTableAlign * kTableAlign;
  if (needed > kTableBytes) fail("a table of {} bytes is too large for the GPU's work space", bytes);
  // In stream order, what is overwritten here has been read.
  if (tables_used_ + needed > kTableBytes) tables_used_ = 0;
  auto* const at = static_cast<std::byte*>(tables_.view().data()) + tables_used_;
  tables_used_ += needed;
  upload(host, at, bytes);
  return at;
}

void* Gpu::staging(int64_t bytes, int64_t most) {
  if (!staging_ || static_cast<int64_t>(staging_.view().bytes()) < bytes) {
    staging_.reset();  // first: there may not be room for both
    staging_ = Buffer(DType::u8, {std::max(bytes, std::min(2 * bytes, most))}, allocator_);
  }
  return staging_.view().data();
}

int32_t* Gpu::tickets(int64_t count) {
  RWKVX_ASSERT(count <= kTickets);
  return tickets_.as<int32_t>();
}

void Gpu::synchronize() { check(cudaStreamSynchronize(stream()), "waiting for it"); }

void Gpu::upload(const void* host, void* device, size_t bytes) {
  if (recording_) throw CannotRecord();
  if (bytes == 0) return;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyDefault, stream()), "copying to it");
  // Of pageable memory up to 64 KiB the driver has taken a copy when the call returns.
  if (bytes > 64 * 1024) synchronize();
}

void Gpu::download(const void* device, void* host, size_t bytes) {
  if (bytes > 0 && bytes <= kPinnedBytes) {
    check(cudaMemcpyAsync(pinned_.data, device, bytes, cudaMemcpyDefault, stream()), "copying from it");
    synchronize();
    std::memcpy(host, pinned_.data, bytes);
    return;
  }
  if (bytes > 0) check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDefault, stream()), "copying from it");
  synchronize();
}

void Gpu::copy(const void* from, void* to, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream()), "copying within it");
}

void Gpu::zero(void* device, size_t bytes) {
  if (bytes > 0) check(cudaMemsetAsync(device, 0, bytes, stream()), "clearing memory");
}

}  // namespace rwkvx::cuda
