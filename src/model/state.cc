#include "model/state.h"

#include "base/error.h"

namespace rwkvx {

State::State(const ModelConfig& config, const KvOptions& options, Ops& ops)
    : config_(config), options_(options), ops_(&ops) {
  reset();
}

void State::reset() {
  position_ = 0;
  const int64_t elements = config_.layers * block_elements() + config_.sparse_blocks * config_.channels;
  recurrent_ = Buffer(ops_->real(), {elements}, ops_->allocator());
  kv_.clear();
  if (config_.sparse_blocks == 0) return;
  const auto memory = std::make_shared<KvMemory>(options_, *ops_, config_.sparse_blocks);
  for (int64_t j = 0; j < config_.sparse_blocks; ++j) {
    kv_.emplace_back(config_.heads(), config_.chunk_size, j, options_, memory, *ops_);
  }
}

void State::advance(int64_t tokens) {
  position_ += tokens;
  try {
    for (KvStore& store : kv_) store.settle();  // before anybody copies them
  } catch (const Error&) {
    // The next reserve() fails for the same reason, before anything is changed.
  }
}

void State::reserve(int64_t tokens) {
  for (KvStore& store : kv_) store.reserve(tokens);
}

State State::fork() const {
  State copy(config_, options_, *ops_);
  copy.position_ = position_;
  ops_->copy(recurrent_.view().data(), copy.recurrent_.view().data(), recurrent_.view().bytes());
  copy.kv_ = kv_;
  return copy;
}

uint64_t State::bytes() const {
  uint64_t total = recurrent_.view().bytes();
  for (const KvStore& store : kv_) total += store.bytes();
  return total;
}

}  // namespace rwkvx
