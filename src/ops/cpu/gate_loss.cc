#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gate_loss.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/attention_tiles-inl.h"
#include "ops/cpu/gate_loss.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;
constexpr int kV = kQueryVectors;

/// 2 vectors of sampled queries of one head, and what they find in each chunk.
struct SampledBlock {
  HWY_ALIGN float q[kQueries * N];    // [query, n], scaled with 1/√N
  HWY_ALIGN float q_t[N * kQueries];  // [n, query]
  HWY_ALIGN float positions[kQueries], own[kQueries];
  HWY_ALIGN float losses[kQueries], hits[kQueries];
  int64_t queries;
  // [chunk, query]: q · sum of keys, later its gradient; the highest score and Σ e^(score − highest), later
  // the share of the attention.
  float *gates, *highest, *totals;
};

/// A maximum and the first index that has it.
struct Best {
  V value, index;
  void offer(V x, V at) {
    const auto better = hn::Gt(x, value);
    value = hn::IfThenElse(better, x, value);
    index = hn::IfThenElse(better, at, index);
  }
};

/// Scores of keys 0 .. count of a chunk whose first key is at position `first`.
template <bool kCausal, typename T>
HWY_NOINLINE void score_chunk(const SampledBlock& block, const Rows<T>& keys, int64_t first, int64_t count,
                              float* highest_of_chunk, float* total_of_chunk) {
  HWY_ALIGN float widened[kKeyBlock * N], scores[kKeyBlock * kQueries];
  V highest[kV], total[kV], position[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    highest[v] = set(-1e30f);  // finite: differences are numbers
    total[v] = zero();
    position[v] = load(block.positions + v * kLanes);
  }
  for (int64_t begin = 0; begin < count; begin += kKeyBlock) {
    const int64_t here = std::min(kKeyBlock, count - begin);
    const float* key_block = keys.from(begin).widened(here, widened);
    V before[kV];
    RWKVX_UNROLL for (int v = 0; v < kV; ++v) before[v] = highest[v];
    for (int64_t key = 0; key < here; key += kTile) {
      V tile[kTile][kV];
      const float* rows[kTile];
      RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
        rows[i] = key_block + std::min(key + i, here - 1) * N;
        RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
      }
      multiply_tile(
          tile, [&](int i, int64_t n) { return rows[i][n]; }, block.q_t, N);
      RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
        if (key + i >= here) break;
        RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
          if constexpr (kCausal) {
            const V at = set(static_cast<float>(first + begin + key + i));
            tile[i][v] = hn::IfThenElse(hn::Gt(at, position[v]), set(-INFINITY), tile[i][v]);
          }
          highest[v] = hn::Max(highest[v], tile[i][v]);
          store(tile[i][v], scores + (key + i) * kQueries + v * kLanes);
        }
      }
    }
    RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
      total[v] = hn::Mul(total[v], exp(hn::Sub(before[v], highest[v])));
    }
    for (int64_t key = 0; key < here; ++key) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        const V score = load(scores + key * kQueries + v * kLanes);
        total[v] = hn::Add(total[v], exp(hn::Sub(score, highest[v])));
      }
    }
  }
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    store(highest[v], highest_of_chunk + v * kLanes);
    store(total[v], total_of_chunk + v * kLanes);
  }
}

/// From the scores of chunks 0 .. chunks and the gates of those before them to losses and the gates'
/// gradients.
HWY_NOINLINE void compare_gates(SampledBlock& block, int64_t chunks, int64_t chunk_size, float scale) {
  for (int64_t v = 0; v < kQueries; v += kLanes) {
    const auto at = [&](float* x, int64_t chunk) { return x + chunk * kQueries + v; };
    const V own = load(block.own + v), none = set(-1e30f);
    const V gate_scale = set(8.0f / static_cast<float>(chunk_size));  // √N / B: q is scaled
    V highest = none;
    Best gate{none, none}, mass{none, none};
    for (int64_t j = 0; j < chunks; ++j) {
      const V index = set(static_cast<float>(j));
      const V x = hn::Mul(load(at(block.gates, j)), gate_scale);
      store(x, at(block.gates, j));
      gate.offer(hn::IfThenElse(hn::Lt(index, own), x, none), index);
      highest = hn::Max(highest, load(at(block.highest, j)));
    }
    V total = zero(), gate_total = zero();
    for (int64_t j = 0; j < chunks; ++j) {
      const V index = set(static_cast<float>(j));
      const V x = hn::Mul(load(at(block.totals, j)), exp(hn::Sub(load(at(block.highest, j)), highest)));
      store(x, at(block.totals, j));
      total = hn::Add(total, x);
      mass.offer(hn::IfThenElse(hn::Lt(index, own), x, none), index);
      const V share = exp(hn::Sub(load(at(block.gates, j)), gate.value));
      gate_total = hn::Add(gate_total, hn::IfThenElseZero(hn::Lt(index, own), share));
    }
    HWY_ALIGN float logarithm[kLanes];
    store(gate_total, logarithm);
    for (float& x : logarithm) x = std::log(x);
    const V log_total = hn::Add(gate.value, load(logarithm)), inverse = hn::Div(set(1.0f), total);
    V outside = zero(), loss = zero();
    for (int64_t j = 0; j < chunks; ++j) {
      const auto earlier = hn::Lt(set(static_cast<float>(j)), own);
      const V share = hn::IfThenElseZero(earlier, hn::Mul(load(at(block.totals, j)), inverse));
      store(share, at(block.totals, j));
      outside = hn::Add(outside, share);
      const V log_share = hn::Sub(load(at(block.gates, j)), log_total);
      loss = hn::Sub(loss, hn::IfThenElseZero(earlier, hn::Mul(share, log_share)));
    }
    for (int64_t j = 0; j < chunks; ++j) {
      const auto earlier = hn::Lt(set(static_cast<float>(j)), own);
      const V share = exp(hn::Sub(load(at(block.gates, j)), log_total));
      const V gradient = hn::Mul(set(scale), hn::MulSub(outside, share, load(at(block.totals, j))));
      store(hn::IfThenElseZero(earlier, gradient), at(block.gates, j));
    }
    const auto in_first = hn::Eq(own, zero());
    store(loss, block.losses + v);
    const V same = hn::IfThenElseZero(hn::Eq(gate.index, mass.index), set(1.0f));
    store(hn::IfThenElse(in_first, set(-1.0f), same), block.hits + v);
  }
}

/// One head of a sequence.
struct SampledHead {
  const KvChunks& kv;
  int64_t head, width, first;  // the sequence's first row
  const float* q;              // the head's channels of row 0

  template <typename T>
  Rows<T> keys(int64_t chunk) const {
    return {static_cast<T*>(kv.keys[static_cast<size_t>(chunk)]) + head * kv.chunk_size * N, nullptr};
  }
  const float* key_sums(int64_t chunk) const {
    return static_cast<const float*>(kv.key_sums[static_cast<size_t>(chunk)]) + head * N;
  }
};

/// Queries beyond those sampled repeat the last: what they give is not used.
HWY_NOINLINE void load_sampled(const SampledHead& head, std::span<const int64_t> rows, SampledBlock& block) {
  block.queries = static_cast<int64_t>(rows.size());
  for (int64_t lane = 0; lane < kQueries; ++lane) {
    const int64_t row = rows[static_cast<size_t>(std::min(lane, block.queries - 1))];
    const int64_t position = row - head.first;
    block.positions[lane] = static_cast<float>(position);
    block.own[lane] = static_cast<float>(position / head.kv.chunk_size);
    for (int64_t n = 0; n < N; n += kLanes) {
      store(hn::Mul(load(head.q + row * head.width + n), set(0.125f)), block.q + lane * N + n);
    }
  }
  transpose(block.q, N, kQueries, N, block.q_t, kQueries);
}

/// Scores of chunks 0 .. chunks, and gates of all of them.
template <typename T>
HWY_NOINLINE void score_chunks(const SampledHead& head, const SampledBlock& block, int64_t chunks,
                               int64_t last_position) {
  const int64_t B = head.kv.chunk_size;
  const auto lowest = static_cast<int64_t>(block.positions[0]);
  for (int64_t j = 0; j < chunks; ++j) {
    const int64_t count = std::min(B, last_position + 1 - j * B);
    float *highest = block.highest + j * kQueries, *total = block.totals + j * kQueries;
    if (j * B + count - 1 <= lowest) {
      score_chunk<false>(block, head.keys<T>(j), j * B, count, highest, total);
    } else {
      score_chunk<true>(block, head.keys<T>(j), j * B, count, highest, total);
    }
  }
  for (int64_t j = 0; j < chunks; j += kTile) {
    V tile[kTile][kV];
    const float* sums[kTile];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      sums[i] = head.key_sums(std::min(j + i, chunks - 1));
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
    }
    multiply_tile(
        tile, [&](int i, int64_t n) { return sums[i][n]; }, block.q_t, N);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      if (j + i >= chunks) break;
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        store(tile[i][v], block.gates + (j + i) * kQueries + v * kLanes);
      }
    }
  }
}

/// Adds to dq, and to the gradients of the chunks' keys.
HWY_NOINLINE void send_back(const SampledHead& head, SampledBlock& block, int64_t chunks,
                            std::span<const int64_t> rows, float* dq, float* dsums) {
  for (int64_t j = 0; j < chunks; j += kTile) {
    add_rows(block.gates + j * kQueries, block.q, block.queries, std::min<int64_t>(kTile, chunks - j),
             dsums + j * N, N);
  }
  for (int64_t n = 0; n < N; n += kTile) {
    V tile[kTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
    }
    multiply_tile(
        tile, [&](int i, int64_t j) { return head.key_sums(j)[n + i]; }, block.gates, chunks);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        store(tile[i][v], block.q_t + (n + i) * kQueries + v * kLanes);
      }
    }
  }
  transpose(block.q_t, kQueries, N, kQueries, block.q, N);
  const V inverse = set(1.0f / static_cast<float>(head.kv.chunk_size));
  for (size_t lane = 0; lane < rows.size(); ++lane) {
    float* to = dq + rows[lane] * head.width;
    const float* from = block.q + static_cast<int64_t>(lane) * N;
    for (int64_t n = 0; n < N; n += kLanes) store(hn::MulAdd(load(from + n), inverse, load(to + n)), to + n);
  }
}

void gate_loss_head(const ChunkAttention& call, const GateLoss& loss, size_t sequence, int64_t head,
                    GateLossScratch& scratch) {
  const KvChunks& kv = call.kv[sequence];
  const int64_t width = call.q.dim(1), heads = width / N;
  const int64_t first = call.offsets[sequence], end = call.offsets[sequence + 1], B = kv.chunk_size;
  RWKVX_ASSERT(kv.length == end - first);
  const SampledHead one{kv, head, width, first, call.q.as<float>() + head * N};
  const auto from = std::lower_bound(loss.rows.begin(), loss.rows.end(), first);
  const auto to = std::lower_bound(from, loss.rows.end(), end);
  if (from == to) return;
  const int64_t earlier = (to[-1] - first) / B;  // chunks that have a gradient
  float* dsums = scratch.gradients.take<float>(std::max<int64_t>(1, earlier) * N);
  std::fill(dsums, dsums + earlier * N, 0.0f);
  float* dq = loss.dq.as<float>() + head * N;
  SampledBlock block;
  for (auto begin = from; begin < to; begin += std::min(kQueries, to - begin)) {
    const std::span rows(begin, begin + std::min(kQueries, to - begin));
    const int64_t last = rows.back() - first, chunks = last / B + 1;
    block.gates = scratch.chunks.take<float>((3 * chunks + kTile) * kQueries);  // tiles read beyond the last
    block.highest = block.gates + chunks * kQueries;
    block.totals = block.highest + chunks * kQueries;
    load_sampled(one, rows, block);
    if (kv.dtype == DType::bf16) {
      score_chunks<const BFloat16>(one, block, chunks, last);
    } else {
      RWKVX_ASSERT(kv.dtype == DType::f32);
      score_chunks<const float>(one, block, chunks, last);
    }
    compare_gates(block, chunks, B, loss.scale);
    send_back(one, block, chunks - 1, rows, dq, dsums);
    for (size_t lane = 0; lane < rows.size(); ++lane) {
      const int64_t at = (begin - loss.rows.begin() + static_cast<int64_t>(lane)) * heads + head;
      loss.losses.as<float>()[at] = block.losses[lane];
      loss.hits.as<float>()[at] = block.hits[lane];
    }
  }
  const V factor = set(8.0f / static_cast<float>(B));
  for (int64_t row = 0; row < earlier * B; ++row) {
    float* dk = loss.dk.as<float>() + (first + row) * width + head * N;
    for (int64_t n = 0; n < N; n += kLanes) {
      store(hn::MulAdd(load(dsums + row / B * N + n), factor, load(dk + n)), dk + n);
    }
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(gate_loss_head);

void gate_loss_head(const ChunkAttention& call, const GateLoss& loss, size_t sequence, int64_t head,
                    GateLossScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(gate_loss_head)(call, loss, sequence, head, scratch);
}

}  // namespace rwkvx::cpu
#endif
