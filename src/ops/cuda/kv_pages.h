#pragma once

#include <vector>

#include "ops/cuda/gpu.h"
#include "ops/cuda/near_chunks.h"
#include "ops/cuda/sequences.h"
#include "tensor/buffer.h"

/// What this backend keeps beside a KV store.
namespace rwkvx::cuda {

/// A store's pages, where they lie.
std::vector<KvPage> pages_of(const KvChunks& kv);

/// The pages of a store on the GPU, with room for more, and what was written there.
class PageTable {
 public:
  const KvPage* update(Gpu& gpu, const std::vector<KvPage>& pages);

 private:
  Buffer table_;
  size_t capacity_ = 0;
  std::vector<KvPage> written_;
};

struct BesideStore final : KvDerived {
  PageTable table;
  NearChunks near;
};
/// Null where the store has no room for it.
BesideStore* beside(const KvChunks& kv);

}  // namespace rwkvx::cuda
