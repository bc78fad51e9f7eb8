#pragma once

#include <vector>

#include "model/config.h"
#include "model/kv_store.h"
#include "ops/ops.h"

namespace rwkvx {

/// Everything that a sequence carries between calls: the token shifts and WKV states of the RWKV-7 blocks,
/// the token shifts and KV stores of the sparse blocks. A new state is that of an empty sequence.
class State {
 public:
  /// Errors: those of KvMemory.
  State(const ModelConfig& config, const KvOptions& options, Ops& ops);
  State(State&&) = default;
  State& operator=(State&&) = default;

  /// An independent copy; KV pages are shared until one of the two writes to them.
  State fork() const;
  void reset();

  /// Memory for `tokens` more. Errors: no room, on the disk or in memory; the state is as it was.
  void reserve(int64_t tokens);

  int64_t position() const { return position_; }  ///< tokens consumed
  /// `tokens` more have been read.
  void advance(int64_t tokens);

  void* time_shift(int64_t block) { return at(block * block_elements()); }              // [C]
  void* wkv(int64_t block) { return at(block * block_elements() + config_.channels); }  // [H, N, N]
  void* channel_shift(int64_t block) { return at((block + 1) * block_elements() - config_.channels); }  // [C]
  void* sparse_channel_shift(int64_t block) {                                                           // [C]
    return at(config_.layers * block_elements() + block * config_.channels);
  }
  KvStore& kv(int64_t block) { return kv_[static_cast<size_t>(block)]; }
  const KvStore& kv(int64_t block) const { return kv_[static_cast<size_t>(block)]; }

  /// All that is not in KV stores, as one vector.
  View recurrent() { return recurrent_.view(); }
  ConstView recurrent() const { return recurrent_.view(); }
  const ModelConfig& config() const { return config_; }
  const KvOptions& kv_options() const { return options_; }
  Ops& ops() const { return *ops_; }
  /// Memory of the recurrent part and of the KV stores. Shared pages count in each state that uses them.
  uint64_t bytes() const;
  void set_position(int64_t position) { position_ = position; }

 private:
  int64_t block_elements() const { return config_.channels * (2 + kHeadSize); }
  void* at(int64_t element) { return recurrent_.view().rows(element, 0).data(); }

  ModelConfig config_;
  KvOptions options_;
  Ops* ops_;
  int64_t position_ = 0;
  Buffer recurrent_;
  std::vector<KvStore> kv_;
};

}  // namespace rwkvx
