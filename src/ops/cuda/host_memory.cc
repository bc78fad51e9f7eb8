#include "ops/cuda/host_memory.h"

#include <algorithm>

#include "base/assert.h"
#include "base/error.h"
#include "ops/cuda/gpu.h"

namespace rwkvx::cuda {
namespace {

constexpr size_t kAlign = 256;

size_t rounded(size_t bytes) { return std::max<size_t>(kAlign, (bytes + kAlign - 1) / kAlign * kAlign); }

}  // namespace

HostMemory::~HostMemory() {
  cudaStreamSynchronize(stream_);  // kernels may still use it
  for (const auto& [size, slabs] : slabs_) {
    for (const auto& [at, slab] : slabs) cudaFreeHost(slab.at);
  }
}

void* HostMemory::lock(size_t bytes) noexcept {
  void* at = nullptr;
  if (cudaMallocHost(&at, bytes) == cudaSuccess) return at;
  cudaGetLastError();
  return nullptr;
}

void HostMemory::give_back(Slab& slab) noexcept {
  cudaStreamSynchronize(stream_);  // kernels may still use it
  cudaFreeHost(slab.at);
}

void HostMemory::give_back_kept() noexcept {
  for (auto& [bytes, slabs] : slabs_) {
    for (auto at = slabs.begin(); at != slabs.end();) {
      const bool kept = at->second.free.size() == at->second.blocks;
      if (kept) give_back(at->second);
      at = kept ? slabs.erase(at) : std::next(at);
    }
  }
  kept_ = 0;
}

HostMemory::Slab& HostMemory::slab_with_room(size_t bytes) {
  Slabs& slabs = slabs_[bytes];
  for (auto& [at, slab] : slabs) {
    if (!slab.free.empty()) return slab;
  }
  Slab slab;
  slab.blocks = std::max<size_t>(1, kSlabBytes / bytes);
  slab.free.reserve(slab.blocks);
  const size_t all = slab.blocks * bytes;
  void* at = lock(all);
  if (at == nullptr && kept_ > 0) {
    give_back_kept();
    at = lock(all);
  }
  if (at == nullptr) {
    fail(
        "out of memory of the host that the GPU can reach ({:.3f} GB were asked for); use --kv bounded, a "
        "shorter context or --kv-dtype int8",
        1e-9 * static_cast<double>(all));
  }
  slab.at = static_cast<std::byte*>(at);
  for (size_t i = slab.blocks; i > 0; --i) slab.free.push_back(slab.at + (i - 1) * bytes);
  kept_ += all;
  return slabs.emplace(slab.at, std::move(slab)).first->second;
}

void* HostMemory::allocate(size_t bytes) {
  Slab& slab = slab_with_room(rounded(bytes));
  std::byte* const block = slab.free.back();
  check(cudaMemsetAsync(block, 0, bytes, stream_), "clearing memory of the host");
  if (slab.free.size() == slab.blocks) kept_ -= slab.blocks * rounded(bytes);
  slab.free.pop_back();
  return block;
}

void HostMemory::release(void* block, size_t bytes) noexcept {
  Slabs& slabs = slabs_.at(rounded(bytes));
  const auto at = std::prev(slabs.upper_bound(static_cast<std::byte*>(block)));
  Slab& slab = at->second;
  slab.free.push_back(static_cast<std::byte*>(block));
  if (slab.free.size() < slab.blocks) return;
  const size_t all = slab.blocks * rounded(bytes);
  if (kept_ + all <= most_kept_) {
    kept_ += all;
    return;
  }
  give_back(slab);
  slabs.erase(at);
}

}  // namespace rwkvx::cuda
