#include "model/sparse_attention.h"

#include <algorithm>
#include <array>
#include <vector>

namespace rwkvx {
namespace {

struct AttentionRows {
  View q, k, v;  // [R, C] real
  View read;     // [R, C] active
};

void attend(Ops& ops, std::span<const int64_t> offsets, std::span<KvStore* const> stores, int64_t top_k,
            const AttentionRows& rows) {
  std::vector<KvChunks> chunks;
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

void sparse_attention(Ops& ops, const AttentionWeights& w, const Batch& batch,
                      std::span<KvStore* const> stores, int64_t top_k, ConstView x, View residual,
                      Arena& arena) {
  const int64_t R = x.dim(0), C = x.dim(1);
  const View q = arena.take(ops.real(), {R, C}), k = arena.take(ops.real(), {R, C}),
             v = arena.take(ops.real(), {R, C});
  ops.linear(std::array<LinearCall, 3>{{{x, &w.receptance, q}, {x, &w.key, k}, {x, &w.value, v}}});

  const View read = arena.take(ops.active(), {R, C});
  const auto room = [&](size_t s) { return stores[s]->room() >= batch.offsets[s + 1] - batch.offsets[s]; };
  bool at_once = true;
  for (size_t s = 0; s < stores.size(); ++s) at_once = at_once && room(s);
  if (at_once) {
    attend(ops, batch.offsets, stores, top_k, {q, k, v, read});
  } else {  // a bounded store drops tokens on the way: piece by piece
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
  ops.linear({.x = read, .w = &w.output, .y = residual, .add = true});
}

}  // namespace rwkvx
