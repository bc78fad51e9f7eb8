#include "model/state.h"

namespace rwkvx {

State::State(const ModelConfig& config, Ops& ops) : config_(config), ops_(&ops) { reset(); }

void State::reset() {
  position_ = 0;
  const int64_t elements = config_.layers * block_elements() + config_.sparse_blocks * config_.channels;
  recurrent_ = Buffer(ops_->real(), {elements}, ops_->allocator());
  kv_.clear();
  const DType kv_type = ops_->precision() == Precision::bf16 ? DType::bf16 : ops_->real();
  for (int64_t j = 0; j < config_.sparse_blocks; ++j)
    kv_.emplace_back(config_.heads(), config_.chunk_size, kv_type, *ops_);
}

State State::fork() const {
  State copy(config_, *ops_);
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
