#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ops/cuda/host_memory.h"
#include "tensor/arena.h"

/// The host's side of a GPU: memory, the stream that everything runs in, launches.
namespace rwkvx::cuda {

/// Errors: an Error that says what failed, and for memory how much there is.
void check(cudaError_t result, std::string_view what);

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes = 0;  ///< dynamic shared memory
  int shared_percent = -1;  ///< of the first cache, as shared memory; −1: as the driver thinks
};

/// Memory on the GPU, zeroed. Stream-ordered: blocks may be released while kernels that use them run.
class GpuAllocator final : public Allocator {
 public:
  GpuAllocator(cudaStream_t stream, const bool& recording) : stream_(stream), recording_(recording) {}
  void* allocate(size_t bytes) override;
  void release(void* block, size_t bytes) noexcept override;

 private:
  cudaStream_t stream_;
  const bool& recording_;
};

struct CannotRecord {};

class Gpu {
 public:
  /// Errors: no driver, no such GPU, one that is too old.
  explicit Gpu(int device);
  Gpu(const Gpu&) = delete;
  Gpu& operator=(const Gpu&) = delete;

  cudaStream_t stream() const { return stream_.handle; }
  Allocator& allocator() { return allocator_; }
  Allocator& host_memory() { return host_memory_; }
  /// Temporaries of one operation; take an Arena::Scope first. Later operations reuse them, in stream order.
  Arena& scratch() { return scratch_; }
  /// At least `bytes` for one operation's copies of what lies elsewhere; grows by steps, up to `most` if that
  /// suffices.
  void* staging(int64_t bytes, int64_t most);
  int multiprocessors() const { return multiprocessors_; }
  int capability() const { return capability_; }  ///< 90 for Hopper
  /// Whether kernels wait for those before them by themselves, so that they may start earlier.
  bool dependent_launches() const { return dependent_launches_; }
  int64_t memory_bytes() const { return memory_bytes_; }
  std::string_view name() const { return name_; }

  /// A copy of a small array of the host's on the GPU, good until some 200 more calls.
  const void* table(const void* host, size_t bytes);
  template <typename T>
  const T* table(std::span<const T> host) {
    return static_cast<const T*>(table(host.data(), host.size_bytes()));
  }
  /// Counters that are zero between kernels, `count` of them; a kernel that uses them leaves them so.
  int32_t* tickets(int64_t count);
  /// Waits until everything asked for is done. Errors: what went wrong in it.
  void synchronize();

  /// Between these, what is asked for is not done but written down, and nothing may be allocated or copied
  /// from the host: CannotRecord is thrown. False: this GPU does not record.
  bool begin_recording();
  /// What was written down; null when it cannot be done again.
  std::shared_ptr<void> end_recording();
  void play(void* recording);
  bool recording() const { return recording_; }

  /// What products keep for this GPU.
  std::shared_ptr<void>& multiplier_state() { return multiplier_state_; }

  void upload(const void* host, void* device, size_t bytes);
  void download(const void* device, void* host, size_t bytes);
  void copy(const void* from, void* to, size_t bytes);
  void zero(void* device, size_t bytes);

 private:
  void keep_freed_memory();

  int device_;
  struct Stream {
    cudaStream_t handle;
    ~Stream();
  };
  Stream stream_;  // outlives the memory below
  int multiprocessors_ = 0, capability_ = 0;
  int64_t memory_bytes_ = 0;
  std::string name_;
  bool recording_ = false, dependent_launches_ = false;
  GpuAllocator allocator_;
  HostMemory host_memory_;
  Arena scratch_;
  /// Memory of the host that the GPU copies to without the driver's help.
  struct Pinned {
    void* data = nullptr;
    ~Pinned();
  };
  Pinned pinned_;
  Buffer tables_, tickets_, staging_;
  size_t tables_used_ = 0;
  std::shared_ptr<void> multiplier_state_;
};

/// kernel<<<grid>>>(arguments…) in the GPU's stream, as a programmatic dependent launch: the kernel may start
/// before the one before it has ended, and must call wait_for_previous_kernel().
template <typename... Parameters, typename... Arguments>
void launch(Gpu& gpu, const Grid& grid, void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = gpu.stream();
  config.attrs = &attribute;
  config.numAttrs = gpu.dependent_launches() ? 1 : 0;
  if (grid.shared_bytes > 32 * 1024) {  // with what the kernel itself names it may be more than 48
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared_bytes)),
          "asking for shared memory");
  }
  if (grid.shared_percent >= 0) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, grid.shared_percent),
          "dividing the first cache");
  }
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "starting a kernel");
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

}  // namespace rwkvx::cuda
