#include "model/model.h"

#include <atomic>
#include <functional>
#include <limits>

#include "base/error.h"
#include "base/hash.h"
#include "model/block.h"

namespace rwkvx {
namespace {

/// One pointer for each sequence, picked by `of`.
template <typename Pointer, typename Of>
std::pmr::vector<Pointer> for_sequences(std::span<const SequenceInput> inputs,
                                        std::pmr::memory_resource* memory, Of of) {
  std::pmr::vector<Pointer> pointers(memory);
  pointers.reserve(inputs.size());
  for (const SequenceInput& input : inputs) pointers.push_back(of(*input.state));
  return pointers;
}

uint64_t next_model() {
  static std::atomic<uint64_t> count{0};
  return count++;
}

KvOptions checked(KvOptions kv, int64_t chunk_size) {
  kv.check(chunk_size);
  return kv;
}

}  // namespace

Model::Model(std::shared_ptr<const Checkpoint> checkpoint, std::shared_ptr<Ops> ops, KvOptions kv)
    : ops_(std::move(ops)),
      id_(next_model()),
      kv_(checked(std::move(kv), checkpoint->config.chunk_size)),
      weights_(std::move(checkpoint), *ops_) {
  order_ = block_order(config());
  if (!kv_.dtype && config().sparse_blocks > 0) {
    kv_.dtype = ops_->kv_type(weights_.weights().sparse.front().att.key.weight.dtype());
  }
}

std::pmr::vector<KvStore*> Model::stores(const BlockRef& block, const Pass& pass, PassMemory& memory) {
  return for_sequences<KvStore*>(pass.inputs, memory.resource(),
                                 [&](State& s) { return &s.kv(block.index); });
}

std::pmr::vector<void*> Model::shifts(const BlockRef& block, const Pass& pass, PassMemory& memory) {
  return for_sequences<void*>(pass.inputs, memory.resource(),
                              [&](State& s) { return s.sparse_channel_shift(block.index); });
}

int64_t Model::top_k() const {
  return kv_.selection == Selection::full ? std::numeric_limits<int32_t>::max() : config().top_k;
}

void Model::run_block(const BlockRef& block, const Pass& pass) const {
  const Arena::Scope scope(pass.arena);
  PassMemory memory;
  const auto at = static_cast<size_t>(block.index);
  if (block.sparse) {
    return sparse_block(*ops_, weights_.weights().sparse[at], pass.batch, stores(block, pass, memory),
                        shifts(block, pass, memory), top_k(), pass.x, pass.arena);
  }
  const auto of_sequences = [&](auto of) { return for_sequences<void*>(pass.inputs, memory.resource(), of); };
  const auto time_shift = of_sequences([&](State& s) { return s.time_shift(block.index); });
  const auto wkv = of_sequences([&](State& s) { return s.wkv(block.index); });
  const auto channel_shift = of_sequences([&](State& s) { return s.channel_shift(block.index); });
  rwkv_block(*ops_, weights_.weights().blocks[at], pass.batch, {time_shift, wkv, channel_shift},
             block.index == 0, pass.v_first, pass.x, pass.arena);
}

void Model::run_steps(const Pass& pass) const {
  const AttentionRows rows = attention_rows(*ops_, pass.batch.rows(), config().channels, pass.arena);
  for (size_t i = 0, end = 0;; i = end++) {
    while (end < order_.size() && !order_[end].sparse) ++end;
    replay(i, end, pass, rows);
    if (end == order_.size()) return;
    PassMemory memory;
    attention_read(*ops_, pass.batch, stores(order_[end], pass, memory), top_k(), rows);
  }
}

/// Blocks order[first] … order[last − 1], of which the first may be sparse and has been read for; then what
/// the sparse block order[last] reads with, or the head.
void Model::replay(size_t first, size_t last, const Pass& pass, const AttentionRows& rows) const {
  const auto sparse = [&](size_t i) -> const SparseBlockWeights& {
    return weights_.weights().sparse[static_cast<size_t>(order_[i].index)];
  };
  const auto work = [&] {
    for (size_t i = first; i < last; ++i) {
      if (!order_[i].sparse) {
        run_block(order_[i], pass);
        continue;
      }
      const Arena::Scope scope(pass.arena);
      PassMemory memory;
      behind_reading(*ops_, sparse(i), pass.batch, shifts(order_[i], pass, memory), rows, pass.x, pass.arena);
    }
    if (last == order_.size()) return head(pass);
    const Arena::Scope scope(pass.arena);
    before_reading(*ops_, sparse(last), pass.x, rows, pass.arena);
  };
  // All memory that this touches follows from these.
  Hash64 hash;
  const auto add = [&](const auto& value) { hash.update(std::as_bytes(std::span(&value, 1))); };
  add(id_);
  add(first);
  add(last);
  add(pass.which);
  add(pass.batch.rows());
  const Arena::Scope scope(pass.arena);
  for (const void* memory : {pass.x.data(), pass.v_first.data(), pass.logits.data(), rows.q.data(),
                             pass.arena.take(DType::u8, {0}).data()}) {
    add(memory);
  }
  for (const SequenceInput& input : pass.inputs) add(input.state->time_shift(0));
  ops_->replay(hash.digest(), std::ref(work));  // a copy would be allocated
}

void Model::forward(std::span<const SequenceInput> inputs, LogitsOf which, View logits, Arena& arena) const {
  RWKVX_ASSERT(!inputs.empty());
  PassMemory memory;
  std::pmr::vector<int64_t> offsets(memory.resource());
  std::pmr::vector<int32_t> tokens(memory.resource());
  size_t count = 0;
  for (const SequenceInput& input : inputs) count += input.tokens.size();
  offsets.reserve(inputs.size() + 1);
  tokens.reserve(count);
  offsets.push_back(0);
  for (const SequenceInput& input : inputs) {
    RWKVX_ASSERT(!input.tokens.empty() && input.state != nullptr && input.state->config() == config());
    for (size_t i = 0; i < input.tokens.size(); ++i) {
      const int32_t id = input.tokens[i];
      if (id < 0 || id >= config().vocab) {
        fail("token {} at position {} is outside the model's vocabulary of {}", id,
             input.state->position() + static_cast<int64_t>(i), config().vocab);
      }
      tokens.push_back(id);
    }
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  for (const SequenceInput& input : inputs) input.state->reserve(static_cast<int64_t>(input.tokens.size()));
  const Batch batch{offsets};
  const int64_t R = batch.rows(), C = config().channels;
  const Weights& w = weights_.weights();

  const Arena::Scope scope(arena);
  const View x = arena.take(ops_->real(), {R, C}), v_first = arena.take(ops_->real(), {R, C});
  ops_->embed(tokens, w.embedding, x);
  ops_->layer_norm(x, w.ln0.gain, w.ln0.bias, kNormEps, x);
  const Pass pass{batch, inputs, v_first, x, which, logits, arena};
  if (batch.rows() == batch.sequences()) {
    run_steps(pass);
  } else {
    for (const BlockRef& block : order_) run_block(block, pass);
    head(pass);
  }
  for (const SequenceInput& input : inputs) input.state->advance(static_cast<int64_t>(input.tokens.size()));
}

void Model::head(const Pass& pass) const {
  const auto& [batch, inputs, v_first, x, which, logits, arena] = pass;
  if (which == LogitsOf::none) return;
  const Arena::Scope scope(arena);
  const Weights& w = weights_.weights();
  View last = x;
  if (which == LogitsOf::last && batch.sequences() < batch.rows()) {
    std::vector<int64_t> rows;
    for (size_t s = 1; s < batch.offsets.size(); ++s) rows.push_back(batch.offsets[s] - 1);
    last = arena.take(ops_->real(), {batch.sequences(), config().channels});
    ops_->gather_rows(x, rows, last);
  }
  const View normed = arena.take(ops_->active(), last.shape());
  ops_->layer_norm(last, w.ln_out.gain, w.ln_out.bias, kNormEps, normed);
  ops_->linear({.x = normed, .w = &w.head, .y = logits});
}

}  // namespace rwkvx
