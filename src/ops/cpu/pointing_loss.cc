#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/pointing_loss.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "ops/cpu/pointing_loss.h"
#include "ops/cpu/sampled_queries-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;
constexpr int kV = kQueryVectors;

/// Calls take(position, keys) with blocks of keys as float32 [here, N], for positions 0 .. count.
template <typename T, typename Take>
HWY_INLINE void over_keys(const SampledHead& head, int64_t count, const Take& take) {
  HWY_ALIGN float widened[kKeyBlock * N];
  const int64_t B = head.kv.chunk_size;
  for (int64_t chunk = 0; chunk * B < count; ++chunk) {
    const Rows<T> keys = head.keys<T>(chunk);
    const int64_t in_chunk = std::min(B, count - chunk * B);
    for (int64_t begin = 0; begin < in_chunk; begin += kKeyBlock) {
      const int64_t here = std::min(kKeyBlock, in_chunk - begin);
      take(chunk * B + begin, here, keys.from(begin).widened(here, widened));
    }
  }
}

/// scores [count, query] of all keys, and the highest of each query.
template <typename T>
HWY_NOINLINE void score_all(const SampledHead& head, const SampledQueries& sampled, int64_t count,
                            float* scores, float* highest_of) {
  V highest[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) highest[v] = set(-1e30f);
  over_keys<T>(head, count, [&](int64_t position, int64_t here, const float* keys) {
    score_keys<true>(sampled.q_t, sampled.positions, keys, position, here, scores + position * kQueries,
                     highest);
  });
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) store(highest[v], highest_of + v * kLanes);
}

/// Scores become shares · factor. Returns the logarithms of Σ e^(score − highest) in log_totals.
HWY_NOINLINE void to_shares(float* scores, int64_t count, const float* highest_of, const float* factors,
                            float* log_totals) {
  for (int64_t v = 0; v < kQueries; v += kLanes) {
    const V highest = load(highest_of + v);
    V total = zero();
    for (int64_t key = 0; key < count; ++key) {
      float* at = scores + key * kQueries + v;
      const V x = exp(hn::Sub(load(at), highest));
      total = hn::Add(total, x);
      store(x, at);
    }
    const V factor = hn::Div(load(factors + v), total);
    for (int64_t key = 0; key < count; ++key) {
      float* at = scores + key * kQueries + v;
      store(hn::Mul(load(at), factor), at);
    }
    store(total, log_totals + v);
  }
  for (int64_t lane = 0; lane < kQueries; ++lane) log_totals[lane] = std::log(log_totals[lane]);
}

/// dq of the block's rows and dk of all keys += gradients [count, query] · keys, queries.
template <typename T>
HWY_NOINLINE void send_back(const SampledHead& head, SampledQueries& sampled, std::span<const int64_t> rows,
                            const float* gradients, int64_t count, float* dq, float* dk) {
  for (int64_t key = 0; key < count; key += kTile) {
    add_rows(gradients + key * kQueries, sampled.q, sampled.queries, std::min<int64_t>(kTile, count - key),
             dk + (head.first + key) * head.width, head.width);
  }
  std::fill(std::begin(sampled.q_t), std::end(sampled.q_t), 0.0f);
  over_keys<T>(head, count, [&](int64_t position, int64_t here, const float* keys) {
    for (int64_t n = 0; n < N; n += kTile) {
      V tile[kTile][kV];
      float* to = sampled.q_t + n * kQueries;
      RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
        RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = load(to + i * kQueries + v * kLanes);
      }
      multiply_tile(
          tile, [&](int i, int64_t key) { return keys[key * N + n + i]; }, gradients + position * kQueries,
          here);
      RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
        RWKVX_UNROLL for (int v = 0; v < kV; ++v) store(tile[i][v], to + i * kQueries + v * kLanes);
      }
    }
  });
  transpose(sampled.q_t, kQueries, N, kQueries, sampled.q, N);
  for (size_t lane = 0; lane < rows.size(); ++lane) {
    float* to = dq + rows[lane] * head.width;
    const float* from = sampled.q + static_cast<int64_t>(lane) * N;
    for (int64_t n = 0; n < N; n += kLanes)
      store(hn::MulAdd(load(from + n), set(0.125f), load(to + n)), to + n);
  }
}

template <typename T>
HWY_NOINLINE void point_block(const SampledHead& head, const PointingLoss& loss, int64_t first_query,
                              int64_t queries, PointingLossScratch& scratch) {
  const int64_t heads = head.width / N;
  const auto query = static_cast<size_t>(first_query);
  const std::span rows = loss.rows.subspan(query, static_cast<size_t>(queries));
  const int64_t count = rows.back() - head.first + 1;
  SampledQueries sampled;
  sampled.load_rows(head, rows);
  float* scores = scratch.scores.take<float>((count + kTile) * kQueries);  // tiles read beyond the last
  HWY_ALIGN float highest[kQueries], factors[kQueries], log_totals[kQueries];
  score_all<T>(head, sampled, count, scores, highest);

  // Of the mentions: their scores, and the logarithm of Σ e^(score − highest).
  const auto mentions_of = [&](int64_t lane) { return loss.mentions.of(query + static_cast<size_t>(lane)); };
  const auto score_of = [&](int64_t row, int64_t lane) -> float& {
    return scores[(row - head.first) * kQueries + lane];
  };
  std::array<float, kQueries> best, log_mentioned;
  std::vector<float> shares;  // of each mention among them, lane by lane
  bool any = false;
  for (int64_t lane = 0; lane < kQueries; ++lane) {
    factors[lane] = 0;
    if (lane >= queries || mentions_of(lane).empty()) continue;
    any = true;
    factors[lane] = loss.scale;
    const auto l = static_cast<size_t>(lane);
    best[l] = -1e30f;
    for (const int64_t row : mentions_of(lane)) best[l] = std::max(best[l], score_of(row, lane));
    float total = 0;
    for (const int64_t row : mentions_of(lane)) total += std::exp(score_of(row, lane) - best[l]);
    for (const int64_t row : mentions_of(lane))
      shares.push_back(std::exp(score_of(row, lane) - best[l]) / total);
    log_mentioned[l] = best[l] - highest[lane] + std::log(total);
  }
  if (any) to_shares(scores, count, highest, factors, log_totals);
  size_t next = 0;
  for (int64_t lane = 0; lane < queries; ++lane) {
    const auto l = static_cast<size_t>(lane);
    const int64_t at = (first_query + lane) * heads + head.head;
    float& result = loss.losses.as<float>()[at];
    float& hit = loss.hits.as<float>()[at];
    if (mentions_of(lane).empty()) {
      result = 0;
      hit = -1;
      continue;
    }
    result = log_totals[lane] - log_mentioned[l];
    hit = best[l] >= highest[lane] ? 1.0f : 0.0f;
    for (const int64_t row : mentions_of(lane)) score_of(row, lane) -= loss.scale * shares[next++];
  }
  if (!any) return;
  send_back<T>(head, sampled, rows, scores, count, loss.dq.as<float>() + head.head * N,
               loss.dk.as<float>() + head.head * N);
}

void pointing_loss_head(const ChunkAttention& call, const PointingLoss& loss, size_t sequence, int64_t head,
                        PointingLossScratch& scratch) {
  const SampledHead one(call, sequence, head);
  const auto from = std::lower_bound(loss.rows.begin(), loss.rows.end(), one.first);
  const auto to = std::lower_bound(from, loss.rows.end(), call.offsets[sequence + 1]);
  for (auto begin = from; begin < to; begin += std::min(kQueries, to - begin)) {
    const int64_t query = begin - loss.rows.begin(), queries = std::min(kQueries, to - begin);
    if (one.kv.dtype == DType::bf16) {
      point_block<const BFloat16>(one, loss, query, queries, scratch);
    } else {
      RWKVX_ASSERT(one.kv.dtype == DType::f32);
      point_block<const float>(one, loss, query, queries, scratch);
    }
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(pointing_loss_head);

void pointing_loss_head(const ChunkAttention& call, const PointingLoss& loss, size_t sequence, int64_t head,
                        PointingLossScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(pointing_loss_head)(call, loss, sequence, head, scratch);
}

}  // namespace rwkvx::cpu
#endif
