#include "model/training_block.h"

#include <algorithm>
#include <optional>

#include "model/norm_backward.h"
#include "ops/training.h"

namespace rwkvx {
namespace {

/// A row or state of each sequence of the batch, zero at first.
class Running {
 public:
  Running(const TrainingRows& rows, const Shape& of_one) {
    const int64_t S = rows.batch.sequences();
    const View all = rows.arena.take(rows.ops.real(), {S, of_one.elements()});
    rows.ops.training().zero(all);
    for (int64_t s = 0; s < S; ++s) pointers_.push_back(all.rows(s, 1).data());
  }
  std::span<void* const> of(const Slice& slice) const {
    return std::span(pointers_).subspan(slice.first_sequence, slice.sequences());
  }

 private:
  std::vector<void*> pointers_;
};

Shape state_shape(const TrainingRows& rows) { return {rows.config.heads(), kHeadSize, kHeadSize}; }

/// All running states of an RWKV-7 block, or the shift of a sparse one.
struct RunningStates {
  Running time_shift, channel_shift, wkv;
  explicit RunningStates(const TrainingRows& rows)
      : time_shift(rows, {rows.config.channels}),
        channel_shift(rows, {rows.config.channels}),
        wkv(rows, state_shape(rows)) {}
  RwkvBlockState of(const Slice& slice) const {
    return {time_shift.of(slice), wkv.of(slice), channel_shift.of(slice)};
  }
};

View take_copy(const TrainingRows& rows, ConstView from) {
  const View copy = rows.arena.take(from.dtype(), from.shape());
  rows.ops.copy(from.data(), copy.data(), copy.bytes());
  return copy;
}

/// Row `slice` of what `starts` holds, for the sequence that the slice begins within.
View start(const View& starts, size_t slice) { return starts.rows(static_cast<int64_t>(slice), 1); }

void save_start(const TrainingRows& rows, size_t slice, std::span<void* const> running, const View& starts) {
  if (!starts || !rows.slices[slice].begins_within) return;
  const View to = start(starts, slice);
  rows.ops.copy(running[0], to.data(), to.bytes());
}

/// For one slice, states as they were when the forward came to it; changed by running it again.
std::vector<void*> states_again(const TrainingRows& rows, size_t at, const View& starts,
                                const Shape& of_one) {
  const Slice& slice = rows.slices[at];
  const View all =
      rows.arena.take(rows.ops.real(), {static_cast<int64_t>(slice.sequences()), of_one.elements()});
  rows.ops.training().zero(all);
  if (slice.begins_within) {
    const View from = start(starts, at);
    rows.ops.copy(from.data(), all.data(), from.bytes());
  }
  std::vector<void*> pointers;
  for (int64_t s = 0; s < all.dim(0); ++s) pointers.push_back(all.rows(s, 1).data());
  return pointers;
}

/// The gradient of a shift, which the slices of a sequence hand from the later to the earlier.
class ShiftCarry {
 public:
  explicit ShiftCarry(const TrainingRows& rows)
      : carry_(rows.arena.take(rows.ops.real(), {rows.config.channels})) {}
  ShiftNeighbours around(const TrainingRows& rows, size_t at, const View& starts) const {
    const Slice& slice = rows.slices[at];
    ShiftNeighbours around;
    if (slice.begins_within) {
      around.before = start(starts, at).reshaped(carry_.shape());
      around.to_before = carry_;
    }
    if (slice.ends_within) around.from_after = carry_;
    return around;
  }

 private:
  View carry_;
};

/// The gradients of the last states of a slice's sequences; the last one's comes from the slice after it.
class StateCarry {
 public:
  explicit StateCarry(const TrainingRows& rows)
      : carry_(rows.arena.take(rows.ops.real(), state_shape(rows))) {}
  /// Memory for those that have none lasts until the caller's scope ends.
  std::vector<void*> dstates(const TrainingRows& rows, const Slice& slice) const {
    const auto others = static_cast<int64_t>(slice.sequences()) - 1;
    const View zeros = rows.arena.take(rows.ops.real(), {std::max<int64_t>(others, 1), carry_.elements()});
    rows.ops.training().zero(zeros);
    if (!slice.ends_within) rows.ops.training().zero(carry_);
    std::vector<void*> pointers;
    for (int64_t s = 0; s < others; ++s) pointers.push_back(zeros.rows(s, 1).data());
    pointers.push_back(carry_.data());
    return pointers;
  }
  /// After the slice's backward: what its first sequence sends on.
  void keep(const TrainingRows& rows, const std::vector<void*>& dstates) const {
    if (dstates[0] != carry_.data()) rows.ops.copy(dstates[0], carry_.data(), carry_.bytes());
  }

 private:
  View carry_;
};

View take_rows(const TrainingRows& rows, DType dtype, int64_t width) {
  return rows.arena.take(dtype, {rows.x.dim(0), width});
}

SliceStarts take_starts(const TrainingRows& rows, bool time_shift, bool wkv) {
  const auto n = static_cast<int64_t>(rows.slices.size());
  const int64_t C = rows.config.channels;
  const DType real = rows.ops.real();
  SliceStarts starts;
  starts.channel_shift = rows.arena.take(real, {n, C});
  if (time_shift) starts.time_shift = rows.arena.take(real, {n, C});
  if (wkv) starts.wkv = rows.arena.take(real, {n, state_shape(rows).elements()});
  return starts;
}

}  // namespace

void rwkv_forward(const TrainingRows& rows, const RwkvBlockWeights& w, bool first_block) {
  const Arena::Scope scope(rows.arena);
  const RunningStates running(rows);
  for (const Slice& slice : rows.slices) {
    const Arena::Scope slice_scope(rows.arena);
    rwkv_block(rows.ops, w, slice.batch(rows.batch.resets), running.of(slice), first_block,
               slice.of(rows.v_first), slice.of(rows.x), rows.arena);
  }
}

/// Memory of all rows for what stays of a slice.
RwkvBlockKept RwkvTrainingBlock::memory(const Slice& slice) const {
  RwkvBlockKept kept;
  kept.x = slice.of(x_);
  if (keeping_.rest) return kept;
  if (keeping_.projections) {
    kept.att.r = slice.of(all_.att.r);
    kept.att.k = slice.of(all_.att.k);
    kept.att.decay_down = slice.of(all_.att.decay_down);
    kept.att.rate_down = slice.of(all_.att.rate_down);
    kept.att.gate_down = slice.of(all_.att.gate_down);
    if (!first_block_) {
      kept.att.v = slice.of(all_.att.v);
      kept.att.value_down = slice.of(all_.att.value_down);
    }
  }
  if (keeping_.mixing) {
    kept.att.read = slice.of(all_.att.read);
    kept.att.states = all_.att.states.rows(slice.first_interval, wkv7_intervals(slice.offsets));
  }
  if (keeping_.second_half) {
    kept.second.middle = slice.of(all_.second.middle);
    kept.second.ffn.hidden = slice.of(all_.second.ffn.hidden);
  }
  return kept;
}

void RwkvTrainingBlock::forward(const TrainingRows& rows, const RwkvBlockWeights& w, bool first_block,
                                Keeping keeping) {
  const DType real = rows.ops.real(), active = rows.ops.active();
  const int64_t C = rows.config.channels;
  first_block_ = first_block;
  keeping_ = keeping;
  slices_.clear();
  x_ = take_copy(rows, rows.x);
  starts_ = take_starts(rows, true, !keeping.mixing);
  if (!keeping.rest) {
    if (keeping.projections) {
      all_.att.r = take_rows(rows, real, C);
      all_.att.k = take_rows(rows, real, C);
      all_.att.decay_down = take_rows(rows, active, w.att.w1.out());
      all_.att.rate_down = take_rows(rows, active, w.att.a1.out());
      all_.att.gate_down = take_rows(rows, active, w.att.g1.out());
      if (!first_block) {
        all_.att.v = take_rows(rows, real, C);
        all_.att.value_down = take_rows(rows, active, w.att.v1.out());
      }
    }
    if (keeping.mixing) {
      all_.att.read = take_rows(rows, real, C);
      all_.att.states = rows.arena.take(
          real, {wkv7_intervals(rows.batch.offsets), rows.config.heads(), kHeadSize, kHeadSize});
    }
    if (keeping.second_half) {
      all_.second.middle = take_rows(rows, real, C);
      all_.second.ffn.hidden = take_rows(rows, active, w.ffn.key.out());
    }
  }
  std::optional<Arena::Scope> scope;
  if (!keeping.rest) scope.emplace(rows.arena);
  const RunningStates running(rows);
  for (size_t i = 0; i < rows.slices.size(); ++i) {
    const Slice& slice = rows.slices[i];
    const RwkvBlockState state = running.of(slice);
    save_start(rows, i, state.time_shift, starts_.time_shift);
    save_start(rows, i, state.channel_shift, starts_.channel_shift);
    save_start(rows, i, state.wkv, starts_.wkv);
    std::optional<Arena::Scope> slice_scope;
    if (!keeping.rest) slice_scope.emplace(rows.arena);
    RwkvBlockKept kept = memory(slice);
    rwkv_block(rows.ops, w, slice.batch(rows.batch.resets), state, first_block, slice.of(rows.v_first),
               slice.of(rows.x), rows.arena, &kept);
    if (keeping.rest) slices_.push_back(kept);
  }
}

/// Runs forward what the backward of a slice needs and memory does not hold.
RwkvBlockKept RwkvTrainingBlock::again(const TrainingRows& rows, const RwkvBlockWeights& w, size_t at) const {
  const Slice& slice = rows.slices[at];
  RwkvBlockKept kept = memory(slice);
  kept.att.projections_known = keeping_.projections;
  kept.att.mixing_known = keeping_.mixing;
  kept.second.ffn.hidden_known = keeping_.second_half;
  kept.second.result_needed = false;
  const Shape row{rows.config.channels};
  const std::vector<void*> time_shift = states_again(rows, at, starts_.time_shift, row);
  const std::vector<void*> channel_shift = states_again(rows, at, starts_.channel_shift, row);
  std::vector<void*> wkv;
  if (!keeping_.mixing) wkv = states_again(rows, at, starts_.wkv, state_shape(rows));
  const View x = keeping_.second_half ? View() : take_copy(rows, kept.x);
  rwkv_block(rows.ops, w, slice.batch(rows.batch.resets), {time_shift, wkv, channel_shift}, first_block_,
             slice.of(rows.v_first), x, rows.arena, &kept);
  return kept;
}

void RwkvTrainingBlock::backward(const TrainingRows& rows, const RwkvBlockWeights& w,
                                 const RwkvBlockGradients& dw, View d) {
  const Arena::Scope scope(rows.arena);
  const ShiftCarry time_carry(rows), channel_carry(rows);
  const StateCarry state_carry(rows);
  for (size_t i = rows.slices.size(); i-- > 0;) {
    const Arena::Scope slice_scope(rows.arena);
    const Slice& slice = rows.slices[i];
    const RwkvBlockKept kept = keeping_.rest ? slices_[i] : again(rows, w, i);
    const std::vector<void*> dstates = state_carry.dstates(rows, slice);
    const RwkvBlockNeighbours around{{time_carry.around(rows, i, starts_.time_shift), dstates},
                                     channel_carry.around(rows, i, starts_.channel_shift)};
    rwkv_block_backward(rows.ops, w, dw, slice.batch(rows.batch.resets), first_block_, kept, around,
                        slice.of(rows.dv_first), slice.of(d), rows.arena);
    state_carry.keep(rows, dstates);
  }
}

namespace {

void attend_all(const TrainingRows& rows, const SparseBlockWeights& w, ConstView x, AttentionKept& keep) {
  const View normed = rows.arena.take(rows.ops.active(), x.shape());
  rows.ops.layer_norm(x, w.ln1.gain, w.ln1.bias, kNormEps, normed);
  sparse_attention_keeping(rows.ops, w.att, normed, rows.arena, keep);
}

AttentionKept attention_memory(const TrainingRows& rows) {
  return attention_memory(rows.ops, rows.batch.offsets, rows.config.channels, rows.config.chunk_size,
                          rows.config.top_k, rows.arena);
}

/// The output projection, onto the residual stream.
void project(const TrainingRows& rows, const SparseBlockWeights& w, const AttentionKept& attention,
             const Slice& slice, View x) {
  rows.ops.linear({.x = slice.of(attention.call.y), .w = &w.att.output, .y = x, .add = true});
}

}  // namespace

void sparse_forward(const TrainingRows& rows, const SparseBlockWeights& w) {
  const Arena::Scope scope(rows.arena);
  AttentionKept attention = attention_memory(rows);
  attend_all(rows, w, rows.x, attention);
  const Running shift(rows, {rows.config.channels});
  for (const Slice& slice : rows.slices) {
    const Arena::Scope slice_scope(rows.arena);
    const View x = slice.of(rows.x);
    project(rows, w, attention, slice, x);
    const View normed = rows.arena.take(rows.ops.real(), x.shape());
    second_half(rows.ops, w.ln2, w.ffn, slice.batch({}), shift.of(slice), normed, x, rows.arena);
  }
}

SecondHalfKept SparseTrainingBlock::memory(const Slice& slice) const {
  SecondHalfKept kept;
  if (keeping_.rest || !keeping_.second_half) return kept;
  kept.middle = slice.of(all_.middle);
  kept.ffn.hidden = slice.of(all_.ffn.hidden);
  return kept;
}

void SparseTrainingBlock::forward(const TrainingRows& rows, const SparseBlockWeights& w, Keeping keeping) {
  keeping_ = keeping;
  slices_.clear();
  x_ = take_copy(rows, rows.x);
  starts_ = take_starts(rows, false, false);
  if (keeping.second_half && !keeping.rest) {
    all_.middle = take_rows(rows, rows.ops.real(), rows.config.channels);
    all_.ffn.hidden = take_rows(rows, rows.ops.active(), w.ffn.key.out());
  }
  if (keeping.mixing) attention_ = attention_memory(rows);
  std::optional<Arena::Scope> scope;
  if (!keeping.rest) scope.emplace(rows.arena);
  if (!keeping.mixing) attention_ = attention_memory(rows);
  attend_all(rows, w, rows.x, attention_);
  const Running shift(rows, {rows.config.channels});
  for (size_t i = 0; i < rows.slices.size(); ++i) {
    const Slice& slice = rows.slices[i];
    save_start(rows, i, shift.of(slice), starts_.channel_shift);
    std::optional<Arena::Scope> slice_scope;
    if (!keeping.rest) slice_scope.emplace(rows.arena);
    const View x = slice.of(rows.x);
    project(rows, w, attention_, slice, x);
    SecondHalfKept kept = memory(slice);
    const View normed = rows.arena.take(rows.ops.real(), x.shape());
    second_half(rows.ops, w.ln2, w.ffn, slice.batch({}), shift.of(slice), normed, x, rows.arena, &kept);
    if (keeping.rest) slices_.push_back(kept);
  }
}

void SparseTrainingBlock::backward(const TrainingRows& rows, const SparseBlockWeights& w,
                                   const SparseBlockGradients& dw, const AttentionTeaching& teaching,
                                   View d) {
  const Arena::Scope scope(rows.arena);
  TrainingOps& training = rows.ops.training();
  const Shape all = rows.x.shape();
  if (!keeping_.mixing) {
    attention_ = attention_memory(rows);
    attend_all(rows, w, x_, attention_);
  } else if (!keeping_.rest) {
    const View normed = rows.arena.take(rows.ops.active(), all);
    rows.ops.layer_norm(x_, w.ln1.gain, w.ln1.bias, kNormEps, normed);
    attention_.x = normed;
  }
  const View d_read = rows.arena.take(rows.ops.real(), all);
  {
    const Arena::Scope carry_scope(rows.arena);
    const ShiftCarry carry(rows);
    for (size_t i = rows.slices.size(); i-- > 0;) {
      const Arena::Scope slice_scope(rows.arena);
      const Slice& slice = rows.slices[i];
      SecondHalfKept kept = keeping_.rest ? slices_[i] : memory(slice);
      if (!keeping_.rest) {
        kept.result_needed = false;
        kept.ffn.hidden_known = keeping_.second_half;
        View x;
        if (!keeping_.second_half) {
          x = take_copy(rows, slice.of(x_));
          project(rows, w, attention_, slice, x);
        }
        const View normed = rows.arena.take(rows.ops.real(), {slice.rows(), rows.config.channels});
        const std::vector<void*> shift = states_again(rows, i, starts_.channel_shift, {rows.config.channels});
        second_half(rows.ops, w.ln2, w.ffn, slice.batch({}), shift, normed, x, rows.arena, &kept);
      }
      const View d_slice = slice.of(d);
      second_half_backward(rows.ops, w, dw, slice.batch({}), kept,
                           carry.around(rows, i, starts_.channel_shift), d_slice, rows.arena);
      training.linear_backward({.dy = d_slice,
                                .x = slice.of(attention_.call.y),
                                .w = &w.att.output,
                                .dx = slice.of(d_read),
                                .dw = dw.att.output});
    }
  }
  const View d_normed = rows.arena.take(rows.ops.real(), all);
  sparse_attention_backward(rows.ops, w.att, dw.att, attention_, teaching, d_read, d_normed, rows.arena);
  norm_backward(training, w.ln1, dw.ln1, x_, d_normed, d, true);
}

}  // namespace rwkvx
