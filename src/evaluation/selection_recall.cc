#include "evaluation/selection_recall.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

namespace rwkvx {
namespace {

constexpr int64_t N = kHeadSize;
constexpr double kScale = 0.125;  // 1/√N

double dot(const float* q, const double* x) {
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += static_cast<double>(q[n]) * x[n];
  return sum;
}

struct Statistics {
  std::array<double, N> mean{}, variance{};
};

Statistics statistics(const ChunkKeys& chunk, int64_t begin, int64_t end) {
  Statistics s;
  const auto count = static_cast<double>(end - begin);
  for (int64_t i = begin; i < end; ++i) {
    for (size_t n = 0; n < N; ++n) {
      const double x = chunk.keys[i * N + static_cast<int64_t>(n)];
      s.mean[n] += x / count;
      s.variance[n] += x * x / count;
    }
  }
  for (size_t n = 0; n < N; ++n) s.variance[n] = std::max(0.0, s.variance[n] - s.mean[n] * s.mean[n]);
  return s;
}

/// log of the mean e^(q·k/√N) of normally distributed keys with independent channels.
double gaussian(const float* q, const Statistics& s) {
  double spread = 0;
  for (size_t n = 0; n < N; ++n) spread += static_cast<double>(q[n]) * q[n] * s.variance[n];
  return dot(q, s.mean.data()) * kScale + 0.5 * spread * kScale * kScale;
}

double log_sum_exp(const std::vector<double>& x) {
  const double most = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const double value : x) sum += std::exp(value - most);
  return most + std::log(sum);
}

/// `of` each part of `part` tokens.
template <typename Of>
std::vector<double> over_parts(const ChunkKeys& chunk, int64_t part, const Of& of) {
  std::vector<double> scores;
  for (int64_t begin = 0; begin < chunk.count; begin += part) {
    scores.push_back(of(statistics(chunk, begin, std::min(begin + part, chunk.count))));
  }
  return scores;
}

}  // namespace

std::vector<SelectionRule> selection_rules() {
  std::vector<SelectionRule> rules;
  rules.push_back({"mean", "q · mean of the keys: the trained gate", [](int64_t) { return N; },
                   [](const float* q, const ChunkKeys& chunk) {
                     return dot(q, statistics(chunk, 0, chunk.count).mean.data());
                   }});
  rules.push_back({"normal", "mean and variance of each channel: log E[exp] of normal keys",
                   [](int64_t) { return 2 * N; },
                   [](const float* q, const ChunkKeys& chunk) {
                     return gaussian(q, statistics(chunk, 0, chunk.count));
                   }});
  for (const int64_t part : {256, 128, 64, 32, 16}) {
    const auto parts = [part](int64_t chunk) { return (chunk + part - 1) / part * N; };
    rules.push_back({"max" + std::to_string(part), "the largest q · mean of parts of the chunk", parts,
                     [part](const float* q, const ChunkKeys& chunk) {
                       const auto scores = over_parts(
                           chunk, part, [&](const Statistics& s) { return dot(q, s.mean.data()); });
                       return *std::max_element(scores.begin(), scores.end());
                     }});
    rules.push_back({"lse" + std::to_string(part), "log Σ exp(q · mean / √N) over parts", parts,
                     [part](const float* q, const ChunkKeys& chunk) {
                       return log_sum_exp(over_parts(
                           chunk, part, [&](const Statistics& s) { return dot(q, s.mean.data()) * kScale; }));
                     }});
  }
  rules.push_back({"normal64", "log Σ E[exp] over parts of 64 with mean and variance",
                   [](int64_t chunk) { return (chunk + 63) / 64 * 2 * N; },
                   [](const float* q, const ChunkKeys& chunk) {
                     return log_sum_exp(
                         over_parts(chunk, 64, [&](const Statistics& s) { return gaussian(q, s); }));
                   }});
  return rules;
}

SelectionProbe::SelectionProbe(std::shared_ptr<Ops> to, int64_t layers, int64_t from, int64_t stride)
    : ForwardingOps(std::move(to)), layers_(layers), from_(from), stride_(stride), rules_(selection_rules()) {
  recall_.layers = layers;
}

void SelectionProbe::chunk_attention(const ChunkAttention& call) {
  ForwardingOps::chunk_attention(call);
  RWKVX_ASSERT(call.kv.size() == 1);  // one sequence
  if (recall_.cells.empty()) {
    recall_.heads = call.q.dim(1) / N;
    recall_.cells.resize(static_cast<size_t>(layers_ * recall_.heads));
  }
  const int64_t first = call.kv[0].length - call.q.dim(0);
  for (int64_t row = 0; row < call.q.dim(0); ++row) {
    const int64_t position = first + row;
    if (position < from_ || (position - from_) % stride_ != 0) continue;
    for (int64_t head = 0; head < recall_.heads; ++head) look(call, row, position, head);
  }
  layer_ = (layer_ + 1) % layers_;
}

void SelectionProbe::look(const ChunkAttention& call, int64_t row, int64_t position, int64_t head) {
  const KvChunks& kv = call.kv[0];
  const int64_t B = kv.chunk_size, own = position / B;
  const auto chosen = static_cast<size_t>(std::min(call.top_k - 1, own));
  if (chosen == 0 || own <= call.top_k - 1) return;  // nothing to choose
  const float* q = call.q.as<float>() + (row * recall_.heads + head) * N;
  SelectionRecall::Cell& cell = recall_.cells[static_cast<size_t>(layer_ * recall_.heads + head)];
  cell.recalled.resize(rules_.size());
  cell.first.resize(rules_.size());

  std::vector<double> weights;  // log Σ exp of each chunk's scores
  std::vector<std::vector<double>> scores(rules_.size());
  std::vector<float> keys(static_cast<size_t>(B * N));
  for (int64_t c = 0; c <= own; ++c) {
    const int64_t count = c < own ? B : position % B + 1;
    const auto at = static_cast<size_t>(c);
    for (int64_t i = 0; i < count * N; ++i) {
      const int64_t element = head * B * N + i;
      float& key = keys[static_cast<size_t>(i)];
      if (kv.dtype == DType::bf16) {
        key = to_float(static_cast<const BFloat16*>(kv.keys[at])[element]);
      } else if (kv.dtype == DType::i8) {
        key = kv.key_scales[at][element / N] *
              static_cast<float>(static_cast<const int8_t*>(kv.keys[at])[element]);
      } else {
        key = static_cast<const float*>(kv.keys[at])[element];
      }
    }
    std::vector<double> tokens(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      float sum = 0;
      for (int64_t n = 0; n < N; ++n) sum += q[n] * keys[static_cast<size_t>(i * N + n)];
      tokens[static_cast<size_t>(i)] = sum * kScale;
    }
    weights.push_back(log_sum_exp(tokens));
    if (c == own) break;
    for (size_t r = 0; r < rules_.size(); ++r) scores[r].push_back(rules_[r].score(q, {keys.data(), B}));
  }
  const double total = log_sum_exp(weights);
  weights.pop_back();
  for (double& weight : weights) weight = std::exp(weight - total);
  const auto largest = [&](const std::vector<double>& x) {
    std::vector<size_t> order(x.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(chosen), order.end(),
                      [&](size_t a, size_t b) { return x[a] > x[b] || (x[a] == x[b] && a < b); });
    order.resize(chosen);
    return order;
  };
  const auto best = largest(weights);
  cell.outside += std::accumulate(weights.begin(), weights.end(), 0.0);
  for (const size_t c : best) cell.oracle += weights[c];
  ++cell.queries;
  for (size_t r = 0; r < rules_.size(); ++r) {
    for (const size_t c : largest(scores[r])) {
      cell.recalled[r] += weights[c];
      cell.first[r] += c == best[0];
    }
  }
}

}  // namespace rwkvx
