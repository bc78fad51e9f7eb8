#include "model/model.h"

#include <atomic>
#include <limits>

#include "base/error.h"
#include "base/hash.h"
#include "model/block.h"

namespace rwkvx {
namespace {

/// One pointer for each sequence, picked by `of`.
template <typename Pointer, typename Of>
std::vector<Pointer> for_sequences(std::span<const SequenceInput> inputs, Of of) {
  std::vector<Pointer> pointers;
  pointers.reserve(inputs.size());
  for (const SequenceInput& input : inputs) pointers.push_back(of(*input.state));
  return pointers;
}

uint64_t next_model() {
  static std::atomic<uint64_t> count{0};
  return count++;
}

}  // namespace

Model::Model(std::shared_ptr<const Checkpoint> checkpoint, std::shared_ptr<Ops> ops, KvOptions kv)
    : ops_(std::move(ops)), id_(next_model()), kv_(std::move(kv)), weights_(std::move(checkpoint), *ops_) {
  order_ = block_order(config());
  kv_.check(config().chunk_size);
  if (kv_.policy == KvPolicy::disk && !ops_->reads_host_memory()) {
    fail("--kv disk does not go with --device {}, which reads no mapped files; use --kv full or bounded",
         ops_->name());
  }
}

void Model::run_block(const BlockRef& block, const Batch& batch, std::span<const SequenceInput> inputs,
                      View v_first, View x, Arena& arena) const {
  const Arena::Scope scope(arena);
  const auto at = static_cast<size_t>(block.index);
  if (block.sparse) {
    const auto stores = for_sequences<KvStore*>(inputs, [&](State& s) { return &s.kv(block.index); });
    const auto shift =
        for_sequences<void*>(inputs, [&](State& s) { return s.sparse_channel_shift(block.index); });
    const int64_t top_k =
        kv_.selection == Selection::full ? std::numeric_limits<int32_t>::max() : config().top_k;
    return sparse_block(*ops_, weights_.weights().sparse[at], batch, stores, shift, top_k, x, arena);
  }
  const auto time_shift = for_sequences<void*>(inputs, [&](State& s) { return s.time_shift(block.index); });
  const auto wkv = for_sequences<void*>(inputs, [&](State& s) { return s.wkv(block.index); });
  const auto channel_shift =
      for_sequences<void*>(inputs, [&](State& s) { return s.channel_shift(block.index); });
  rwkv_block(*ops_, weights_.weights().blocks[at], batch, {time_shift, wkv, channel_shift}, block.index == 0,
             v_first, x, arena);
}

void Model::forward(std::span<const SequenceInput> inputs, LogitsOf which, View logits, Arena& arena) const {
  RWKVX_ASSERT(!inputs.empty());
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> tokens;
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
  for (size_t i = 0; i < order_.size();) {
    if (order_[i].sparse) {
      run_block(order_[i++], batch, inputs, v_first, x, arena);
      continue;
    }
    size_t end = i;
    while (end < order_.size() && !order_[end].sparse) ++end;
    const bool to_head = end == order_.size() && which != LogitsOf::none;
    run_recurrent(i, end, batch, inputs, v_first, x, which, to_head ? logits : View(), arena);
    i = end;
  }
  for (const SequenceInput& input : inputs) input.state->advance(static_cast<int64_t>(input.tokens.size()));
  if (which != LogitsOf::none && order_.back().sparse) head(batch, which, x, logits, arena);
}

void Model::run_recurrent(size_t first, size_t last, const Batch& batch,
                          std::span<const SequenceInput> inputs, View v_first, View x, LogitsOf which,
                          View logits, Arena& arena) const {
  const auto work = [&] {
    for (size_t i = first; i < last; ++i) run_block(order_[i], batch, inputs, v_first, x, arena);
    if (logits) head(batch, which, x, logits, arena);
  };
  if (batch.rows() != batch.sequences()) return work();
  // All memory that these blocks touch follows from these.
  Hash64 hash;
  const auto add = [&](const auto& value) { hash.update(std::as_bytes(std::span(&value, 1))); };
  add(id_);
  add(first);
  add(which);
  add(batch.rows());
  const Arena::Scope scope(arena);
  for (const void* memory : {x.data(), v_first.data(), logits.data(), arena.take(DType::u8, {0}).data()})
    add(memory);
  for (const SequenceInput& input : inputs) add(input.state->time_shift(0));
  ops_->replay(hash.digest(), work);
}

void Model::head(const Batch& batch, LogitsOf which, View x, View logits, Arena& arena) const {
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
