#include "model/model.h"

#include <limits>

#include "base/error.h"
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

}  // namespace

Model::Model(std::shared_ptr<const Checkpoint> checkpoint, std::shared_ptr<Ops> ops, KvOptions kv)
    : ops_(std::move(ops)), kv_(std::move(kv)), weights_(std::move(checkpoint), *ops_) {
  kv_.check(config().chunk_size);
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
  for (const BlockRef& block : block_order(config())) run_block(block, batch, inputs, v_first, x, arena);
  for (const SequenceInput& input : inputs) input.state->advance(static_cast<int64_t>(input.tokens.size()));
  if (which == LogitsOf::none) return;

  View last = x;
  if (which == LogitsOf::last && batch.sequences() < R) {
    std::vector<int64_t> rows;
    for (size_t s = 1; s < offsets.size(); ++s) rows.push_back(offsets[s] - 1);
    last = arena.take(ops_->real(), {batch.sequences(), C});
    ops_->gather_rows(x, rows, last);
  }
  const View normed = arena.take(ops_->active(), last.shape());
  ops_->layer_norm(last, w.ln_out.gain, w.ln_out.bias, kNormEps, normed);
  ops_->linear({.x = normed, .w = &w.head, .y = logits});
}

}  // namespace rwkvx
