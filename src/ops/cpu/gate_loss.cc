#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gate_loss.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <cmath>

#include "ops/cpu/gate_loss.h"
#include "ops/cpu/sampled_queries-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;
constexpr int kV = kQueryVectors;

/// Sampled queries of one head, and what they find in each chunk.
struct SampledBlock : SampledQueries {
  HWY_ALIGN float own[kQueries];
  HWY_ALIGN float losses[kQueries], hits[kQueries];
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
  V highest[kV], total[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    highest[v] = set(-1e30f);  // finite: differences are numbers
    total[v] = zero();
  }
  for (int64_t begin = 0; begin < count; begin += kKeyBlock) {
    const int64_t here = std::min(kKeyBlock, count - begin);
    V before[kV];
    RWKVX_UNROLL for (int v = 0; v < kV; ++v) before[v] = highest[v];
    score_keys<kCausal>(block.q_t, block.positions, keys.from(begin).widened(here, widened), first + begin,
                        here, scores, highest);
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

HWY_NOINLINE void load_sampled(const SampledHead& head, std::span<const int64_t> rows, SampledBlock& block) {
  block.load_rows(head, rows);
  for (int64_t lane = 0; lane < kQueries; ++lane)
    block.own[lane] = std::floor(block.positions[lane] / static_cast<float>(head.kv.chunk_size));
}

/// A query whose mentions are known attends to nothing else: shares of chunks in place of what
/// score_chunks() found.
template <typename T>
HWY_NOINLINE void keep_mentions(const SampledHead& head, SampledBlock& block, int64_t lane, int64_t chunks,
                                std::span<const int64_t> mentions) {
  if (mentions.empty()) return;
  const int64_t B = head.kv.chunk_size;
  const auto score = [&](int64_t row) {
    const int64_t position = row - head.first;
    T* key = head.keys<T>(position / B).row(position % B);
    V sum = zero();
    for (int64_t n = 0; n < N; n += kLanes)
      sum = hn::MulAdd(load(key + n), load(block.q + lane * N + n), sum);
    return sum_of_lanes(sum);
  };
  float highest = -1e30f;
  for (const int64_t row : mentions) highest = std::max(highest, score(row));
  for (int64_t j = 0; j < chunks; ++j)
    block.highest[j * kQueries + lane] = block.totals[j * kQueries + lane] = 0;
  for (const int64_t row : mentions)
    block.totals[(row - head.first) / B * kQueries + lane] += std::exp(score(row) - highest);
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

template <typename T>
HWY_NOINLINE void find_masses(const SampledHead& head, const GateLoss& loss, size_t first_query,
                              int64_t chunks, int64_t last_position, SampledBlock& block) {
  score_chunks<T>(head, block, chunks, last_position);
  for (int64_t lane = 0; loss.mentions && lane < block.queries; ++lane)
    keep_mentions<T>(head, block, lane, chunks, loss.mentions->of(first_query + static_cast<size_t>(lane)));
}

void gate_loss_head(const ChunkAttention& call, const GateLoss& loss, size_t sequence, int64_t head,
                    GateLossScratch& scratch) {
  const SampledHead one(call, sequence, head);
  const KvChunks& kv = one.kv;
  const int64_t width = one.width, heads = width / N;
  const int64_t first = one.first, end = call.offsets[sequence + 1], B = kv.chunk_size;
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
    const auto query = static_cast<size_t>(begin - loss.rows.begin());
    if (kv.dtype == DType::bf16) {
      find_masses<const BFloat16>(one, loss, query, chunks, last, block);
    } else {
      RWKVX_ASSERT(kv.dtype == DType::f32);
      find_masses<const float>(one, loss, query, chunks, last, block);
    }
    compare_gates(block, chunks, B, loss.scale);
    send_back(one, block, chunks - 1, rows, dq, dsums);
    for (size_t lane = 0; lane < rows.size(); ++lane) {
      const auto at = static_cast<int64_t>(query + lane) * heads + head;
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
