#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "ops/ops.h"

/// Ragged rows as kernels take them: by value, a few sequences for each launch.
namespace rwkvx::cuda {

inline constexpr int kSequences = 32;  // of one launch

/// Sequences of one launch: sequence s owns rows offsets[s] .. offsets[s + 1].
struct Sequences {
  int count = 0;
  int64_t offsets[kSequences + 1];
  void* states[kSequences];  // or shifts: one pointer each
};

/// Calls each(sequences, first) for groups of up to kSequences; `states` may be empty.
template <typename Each>
void for_groups(std::span<const int64_t> offsets, std::span<void* const> states, const Each& each) {
  const size_t total = offsets.size() - 1;
  for (size_t first = 0; first < total; first += kSequences) {
    Sequences group;
    group.count = static_cast<int>(std::min<size_t>(kSequences, total - first));
    for (int i = 0; i <= group.count; ++i) group.offsets[i] = offsets[first + static_cast<size_t>(i)];
    for (int i = 0; i < group.count && !states.empty(); ++i) {
      group.states[i] = states[first + static_cast<size_t>(i)];
    }
    each(group, first);
  }
}

/// One chunk of a KV store, as in KvChunks.
struct KvPage {
  void *keys, *values;               // [H, B, N]
  void* key_sums;                    // [H, N] float32
  float *key_scales, *value_scales;  // [H, B], i8 only
  void* part_sums;                   // [H, B / part, N] float32, or null
};
/// A KV store: `pages` lies on the GPU, one for each chunk.
struct Kv {
  const KvPage* pages = nullptr;
  int64_t length = 0, chunk_size = 0, part = 0;
  int64_t far = 0;  ///< as in KvChunks
};
struct KvGroup {
  int count = 0;
  int64_t offsets[kSequences + 1];
  Kv kv[kSequences];
};

class Gpu;
/// The store's pages on the GPU. Kept beside the store where it has room for that (KvChunks::derived), and
/// brought up to date; otherwise a table for this call.
Kv on_gpu(Gpu& gpu, const KvChunks& kv);

}  // namespace rwkvx::cuda
