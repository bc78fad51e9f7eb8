#include <algorithm>
#include <vector>

#include "ops/reference/backward.h"

namespace rwkvx::reference {
namespace {

constexpr int64_t N = kHeadSize;

/// Keys or values of one head of one sequence, by position.
struct Stored {
  const KvChunks& kv;
  int64_t h;
  double key(int64_t position, int64_t n) const { return of(kv.keys, position, n); }
  double value(int64_t position, int64_t n) const { return of(kv.values, position, n); }
  double of(std::span<void* const> pages, int64_t position, int64_t n) const {
    const int64_t B = kv.chunk_size;
    return load(pages[static_cast<size_t>(position / B)], kv.dtype, (h * B + position % B) * N + n);
  }
};

/// What the query of one row and head sees, backward.
void attend_backward(const ChunkAttention& op, const ChunkAttentionGradients& g, size_t s, int64_t t,
                     int64_t h) {
  const int64_t B = op.kv[s].chunk_size, first = op.offsets[s], position = t - first, own = position / B;
  const int64_t heads = op.q.dim(1) / N, slots = op.top_k - 1;
  const Stored stored{op.kv[s], h};
  std::vector<int64_t> chunks{own};
  for (int64_t i = 0; i < slots; ++i) {
    const int32_t chunk = op.chosen.as<int32_t>()[(t * heads + h) * slots + i];
    if (chunk >= 0) chunks.push_back(chunk);
  }
  double delta = 0;  // D = dy · y
  for (int64_t n = 0; n < N; ++n) delta += at(g.dy, t, h * N + n) * at(op.y, t, h * N + n);
  const double scale = 1 / std::sqrt(static_cast<double>(N)), lse = at(op.lse, t, h);
  for (const int64_t chunk : chunks) {
    for (int64_t i = chunk * B; i < std::min((chunk + 1) * B, position + 1); ++i) {
      double score = 0, dp = 0;
      for (int64_t n = 0; n < N; ++n) {
        score += at(op.q, t, h * N + n) * stored.key(i, n);
        dp += at(g.dy, t, h * N + n) * stored.value(i, n);
      }
      const double p = std::exp(score * scale - lse), ds = p * (dp - delta) * scale;
      for (int64_t n = 0; n < N; ++n) {
        const int64_t query = t * op.q.dim(1) + h * N + n, key = (first + i) * op.q.dim(1) + h * N + n;
        add_to(g.dq, query, ds * stored.key(i, n));
        add_to(g.dk, key, ds * at(op.q, query));
        add_to(g.dv, key, p * at(g.dy, query));
      }
    }
  }
}

}  // namespace

void chunk_attention_backward(const ChunkAttention& op, const ChunkAttentionGradients& g) {
  for (int64_t i = 0; i < op.q.elements(); ++i) {
    for (const View& d : {g.dq, g.dk, g.dv}) put(d, i, 0);
  }
  for (size_t s = 0; s + 1 < op.offsets.size(); ++s) {
    for (int64_t t = op.offsets[s]; t < op.offsets[s + 1]; ++t) {
      for (int64_t h = 0; h < op.q.dim(1) / N; ++h) attend_backward(op, g, s, t, h);
    }
  }
}

namespace {

/// Scores of positions 0 .. position for the query at row t.
std::vector<double> all_scores(const ChunkAttention& op, const Stored& stored, int64_t t, int64_t position,
                               int64_t h) {
  std::vector<double> scores;
  for (int64_t i = 0; i <= position; ++i) {
    double score = 0;
    for (int64_t n = 0; n < N; ++n) score += at(op.q, t, h * N + n) * stored.key(i, n);
    scores.push_back(score / std::sqrt(static_cast<double>(N)));
  }
  return scores;
}

/// Those of the mentions; −∞ elsewhere. The sequence begins at row `first`.
std::vector<double> scores_of(std::span<const int64_t> mentions, int64_t first,
                              const std::vector<double>& scores) {
  std::vector<double> mentioned(scores.size(), -INFINITY);
  for (const int64_t row : mentions) {
    const auto i = static_cast<size_t>(row - first);
    mentioned[i] = scores[i];
  }
  return mentioned;
}

size_t sequence_of(const ChunkAttention& op, int64_t row) {
  return static_cast<size_t>(std::upper_bound(op.offsets.begin(), op.offsets.end(), row) -
                             op.offsets.begin() - 1);
}

}  // namespace

void gate_loss(const ChunkAttention& op, const GateLoss& loss) {
  const int64_t heads = op.q.dim(1) / N, width = op.q.dim(1);
  for (size_t sample = 0; sample < loss.rows.size(); ++sample) {
    const int64_t t = loss.rows[sample];
    const size_t s = sequence_of(op, t);
    const KvChunks& kv = op.kv[s];
    const int64_t B = kv.chunk_size, position = t - op.offsets[s], own = position / B;
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t result = static_cast<int64_t>(sample) * heads + h;
      put(loss.losses, result, 0);
      put(loss.hits, result, -1);
      if (own == 0) continue;
      const Stored stored{kv, h};
      const auto q = [&](int64_t n) { return at(op.q, t, h * N + n); };
      const auto mean_key = [&](int64_t j, int64_t n) {
        return load(kv.key_sums[static_cast<size_t>(j)], op.q.dtype(), h * N + n) / static_cast<double>(B);
      };
      // Full causal attention, or that among the mentions; its mass in each earlier chunk.
      std::vector<double> scores = all_scores(op, stored, t, position, h);
      if (loss.mentions && !loss.mentions->of(sample).empty())
        scores = scores_of(loss.mentions->of(sample), op.offsets[s], scores);
      const double highest = *std::max_element(scores.begin(), scores.end());
      std::vector<double> mass(static_cast<size_t>(own)), gate(static_cast<size_t>(own));
      double total = 0, outside = 0;
      for (size_t i = 0; i < scores.size(); ++i) {
        const double p = std::exp(scores[i] - highest);
        total += p;
        if (static_cast<int64_t>(i) / B < own) mass[i / static_cast<size_t>(B)] += p;
      }
      double gate_total = 0;
      for (int64_t j = 0; j < own; ++j) {
        const auto chunk = static_cast<size_t>(j);
        mass[chunk] /= total;
        outside += mass[chunk];
        for (int64_t n = 0; n < N; ++n) gate[chunk] += q(n) * mean_key(j, n);
      }
      const double highest_gate = *std::max_element(gate.begin(), gate.end());
      const auto first = [](const std::vector<double>& x) {
        return std::max_element(x.begin(), x.end()) - x.begin();
      };
      put(loss.hits, result, first(gate) == first(mass) ? 1 : 0);
      for (const double x : gate) gate_total += std::exp(x - highest_gate);
      double cross_entropy = 0;
      for (int64_t j = 0; j < own; ++j) {
        const auto chunk = static_cast<size_t>(j);
        const double log_share = gate[chunk] - highest_gate - std::log(gate_total);
        cross_entropy -= mass[chunk] * log_share;
        const double dgate = static_cast<double>(loss.scale) * (outside * std::exp(log_share) - mass[chunk]);
        for (int64_t n = 0; n < N; ++n) {
          add_to(loss.dq, t * width + h * N + n, dgate * mean_key(j, n));
          for (int64_t i = j * B; i < (j + 1) * B; ++i) {
            add_to(loss.dk, (op.offsets[s] + i) * width + h * N + n, dgate * q(n) / static_cast<double>(B));
          }
        }
      }
      put(loss.losses, result, cross_entropy);
    }
  }
}

void pointing_loss(const ChunkAttention& op, const PointingLoss& loss) {
  const int64_t heads = op.q.dim(1) / N, width = op.q.dim(1);
  for (size_t sample = 0; sample < loss.rows.size(); ++sample) {
    const int64_t t = loss.rows[sample];
    const size_t s = sequence_of(op, t);
    const int64_t first = op.offsets[s];
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t result = static_cast<int64_t>(sample) * heads + h;
      const std::span<const int64_t> mentions = loss.mentions.of(sample);
      put(loss.losses, result, 0);
      put(loss.hits, result, -1);
      if (mentions.empty()) continue;
      const Stored stored{op.kv[s], h};
      const std::vector<double> scores = all_scores(op, stored, t, t - first, h);
      const std::vector<double> mentioned = scores_of(mentions, first, scores);
      const auto log_sum = [](const std::vector<double>& x) {
        const double highest = *std::max_element(x.begin(), x.end());
        double sum = 0;
        for (const double value : x) sum += std::exp(value - highest);
        return std::pair(highest, highest + std::log(sum));
      };
      const auto [highest, all] = log_sum(scores);
      const auto [best, some] = log_sum(mentioned);
      put(loss.losses, result, all - some);
      put(loss.hits, result, best >= highest ? 1 : 0);
      for (size_t i = 0; i < scores.size(); ++i) {
        const double ds = static_cast<double>(loss.scale) *
                          (std::exp(scores[i] - all) - std::exp(mentioned[i] - some)) /
                          std::sqrt(static_cast<double>(N));
        const auto position = static_cast<int64_t>(i);
        for (int64_t n = 0; n < N; ++n) {
          add_to(loss.dq, t * width + h * N + n, ds * stored.key(position, n));
          add_to(loss.dk, (first + position) * width + h * N + n, ds * at(op.q, t, h * N + n));
        }
      }
    }
  }
}

}  // namespace rwkvx::reference
