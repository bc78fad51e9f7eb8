#include "model/sparse_attention.h"

#include <algorithm>
#include <array>
#include <vector>

#include "base/stack_memory.h"
#include "ops/training.h"

namespace rwkvx {
namespace {

void attend(Ops& ops, std::span<const int64_t> offsets, std::span<KvStore* const> stores, int64_t top_k,
            const AttentionRows& rows) {
  StackMemory<4096> memory;
  std::pmr::vector<KvChunks> chunks(memory.resource());
  chunks.reserve(stores.size());
  for (size_t s = 0; s < stores.size(); ++s) {
    stores[s]->extend(offsets[s + 1] - offsets[s]);
    chunks.push_back(stores[s]->chunks());
  }
  ops.kv_append(rows.k, rows.v, offsets, chunks);
  ops.chunk_attention({.q = rows.q, .offsets = offsets, .kv = chunks, .top_k = top_k, .y = rows.read});
  for (size_t s = 0; s < stores.size(); ++s) {
    stores[s]->observe(rows.q.rows(offsets[s], offsets[s + 1] - offsets[s]));
  }
}

}  // namespace

AttentionRows attention_rows(Ops& ops, int64_t rows, int64_t channels, Arena& arena) {
  const auto real = [&] { return arena.take(ops.real(), {rows, channels}); };
  AttentionRows all{real(), real(), real(), {}};
  all.read = arena.take(ops.active(), {rows, channels});
  return all;
}

void attention_inputs(Ops& ops, const NormWeights& ln, const AttentionWeights& w, ConstView x, View normed,
                      const AttentionRows& rows) {
  const std::array<LinearCall, 3> products{
      {{normed, &w.receptance, rows.q}, {normed, &w.key, rows.k}, {normed, &w.value, rows.v}}};
  ops.norm_shift_linear(
      {.x = x, .gain = ln.gain, .bias = ln.bias, .eps = kNormEps, .y = std::span(&normed, 1)}, products);
}

void attention_read(Ops& ops, const Batch& batch, std::span<KvStore* const> stores, int64_t top_k,
                    const AttentionRows& rows) {
  const auto room = [&](size_t s) { return stores[s]->room() >= batch.offsets[s + 1] - batch.offsets[s]; };
  bool at_once = true;
  for (size_t s = 0; s < stores.size(); ++s) at_once = at_once && room(s);
  if (at_once) return attend(ops, batch.offsets, stores, top_k, rows);
  // A bounded store drops tokens on the way: piece by piece.
  const auto& [q, k, v, read] = rows;
  for (size_t s = 0; s < stores.size(); ++s) {
    for (int64_t row = batch.offsets[s]; row < batch.offsets[s + 1];) {
      const int64_t n = std::min(stores[s]->room(), batch.offsets[s + 1] - row);
      const std::array<int64_t, 2> piece{0, n};
      attend(ops, piece, stores.subspan(s, 1), top_k,
             {q.rows(row, n), k.rows(row, n), v.rows(row, n), read.rows(row, n)});
      row += n;
    }
  }
}

void attention_output(Ops& ops, const AttentionWeights& w, const AttentionRows& rows, View residual) {
  ops.linear({.x = rows.read, .w = &w.output, .y = residual, .add = true});
}

AttentionKept attention_memory(Ops& ops, std::span<const int64_t> offsets, int64_t channels,
                               int64_t chunk_size, int64_t top_k, Arena& arena) {
  const int64_t R = offsets.back(), C = channels, H = C / kHeadSize;
  AttentionKept keep;
  const DType stored = ops.kv_type(ops.active());
  std::vector<size_t> first_page;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    const int64_t length = offsets[s + 1] - offsets[s];
    // A sequence within one chunk needs no more room than it is long; what its queries see is the same.
    KvChunks kv;
    kv.chunk_size = std::min(chunk_size, length);
    kv.length = length;
    kv.dtype = stored;
    first_page.push_back(keep.keys.size());
    for (int64_t begin = 0; begin < length; begin += kv.chunk_size) {
      keep.keys.push_back(arena.take(stored, {H, kv.chunk_size, kHeadSize}).data());
      keep.values.push_back(arena.take(stored, {H, kv.chunk_size, kHeadSize}).data());
      keep.key_sums.push_back(arena.take(ops.real(), {H, kHeadSize}).data());
    }
    keep.kv.push_back(kv);
  }
  for (size_t s = 0; s < keep.kv.size(); ++s) {
    const size_t first = first_page[s],
                 count = (s + 1 < first_page.size() ? first_page[s + 1] : keep.keys.size()) - first;
    keep.kv[s].keys = std::span(keep.keys).subspan(first, count);
    keep.kv[s].values = std::span(keep.values).subspan(first, count);
    keep.kv[s].key_sums = std::span(keep.key_sums).subspan(first, count);
  }
  keep.q = arena.take(ops.real(), {R, C});
  keep.call.q = keep.q;
  keep.call.offsets = offsets;
  keep.call.kv = keep.kv;
  keep.call.top_k = top_k;
  keep.call.y = arena.take(ops.active(), {R, C});
  keep.call.lse = arena.take(ops.real(), {R, H});
  keep.call.chosen = arena.take(DType::i32, {R, H, top_k - 1});
  return keep;
}

void sparse_attention_keeping(Ops& ops, const AttentionWeights& w, ConstView x, Arena& arena,
                              AttentionKept& keep) {
  const Arena::Scope scope(arena);
  const View k = arena.take(ops.real(), x.shape()), v = arena.take(ops.real(), x.shape());
  ops.linear(std::array<LinearCall, 3>{{{x, &w.receptance, keep.q}, {x, &w.key, k}, {x, &w.value, v}}});
  ops.kv_append(k, v, keep.call.offsets, keep.kv);
  ops.chunk_attention(keep.call);
  keep.x = x;
}

void sparse_attention_backward(Ops& ops, const AttentionWeights& w, const AttentionGradients& dw,
                               const AttentionKept& kept, const AttentionTeaching& teaching, ConstView d_read,
                               View dx, Arena& arena) {
  const Arena::Scope scope(arena);
  const auto real = [&] { return arena.take(ops.real(), dx.shape()); };
  const View dq = real(), dk = real(), dv = real();
  TrainingOps& training = ops.training();
  training.chunk_attention_backward(kept.call, {.dy = d_read, .dq = dq, .dk = dk, .dv = dv});
  if (const auto& gate = teaching.gate; gate.scale > 0) {
    training.gate_loss(kept.call, {.rows = teaching.rows,
                                   .mentions = teaching.mentions,
                                   .scale = gate.scale,
                                   .losses = gate.losses,
                                   .hits = gate.hits,
                                   .dq = dq,
                                   .dk = dk});
  }
  if (const auto& pointing = teaching.pointing; pointing.scale > 0) {
    training.pointing_loss(kept.call, {.rows = teaching.rows,
                                       .mentions = *teaching.mentions,
                                       .scale = pointing.scale,
                                       .losses = pointing.losses,
                                       .hits = pointing.hits,
                                       .dq = dq,
                                       .dk = dk});
  }
  const std::array<LinearBackward, 3> projections{{
      {dq, kept.x, &w.receptance, dx, dw.receptance},
      {.dy = dk, .x = kept.x, .w = &w.key, .dx = dx, .dw = dw.key, .add = true},
      {.dy = dv, .x = kept.x, .w = &w.value, .dx = dx, .dw = dw.value, .add = true},
  }};
  training.linear_backward(projections);
}

}  // namespace rwkvx
