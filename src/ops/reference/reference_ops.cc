#include "ops/reference/reference_ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "ops/reference/access.h"
#include "ops/reference/kv_rows.h"
#include "ops/reference/reference_training.h"
#include "tensor/convert.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

using reference::at;
using reference::load;
using reference::put;
using reference::store;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::tanh:
      return std::tanh(x);
    case Activation::sigmoid:
      return sigmoid(x);
    case Activation::relu_squared:
      return x > 0 ? x * x : 0;
  }
  return x;
}

class ReferenceOps final : public Ops {
 public:
  explicit ReferenceOps(Precision precision) : precision_(precision) {}

  std::string_view name() const override { return "reference"; }
  Precision precision() const override { return precision_; }
  Allocator& allocator() override { return host_allocator(); }

  using Ops::prepare;
  Matrix prepare(ConstView weight, bool) override {
    RWKVX_ASSERT(weight.shape().rank() == 2);
    if (is_computable(weight.dtype())) {
      auto values = std::make_shared<Buffer>(DType::f32, weight.shape());
      convert(weight, *values);
      return {values->view(), values};
    }
    if (!is_float(weight.dtype()))
      fail("the reference backend cannot multiply with {} weights", rwkvx::name(weight.dtype()));
    return {weight, nullptr};
  }

  void embed(std::span<const int32_t> tokens, ConstView table, View y) override {
    for (int64_t t = 0; t < y.dim(0); ++t)
      convert(table.rows(tokens[static_cast<size_t>(t)], 1), y.rows(t, 1));
  }

  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y) override {
    const int64_t width = x.dim(1);
    for (int64_t t = 0; t < x.dim(0); ++t) {
      normalize(x, t, 0, width, gain, bias, eps, [&](int64_t c, double value) { put(y, t, c, value); });
    }
  }

  void token_shift(ConstView x, ConstView mix, std::span<const int64_t> offsets, std::span<void* const> last,
                   std::span<const View> y) override {
    const int64_t width = x.dim(1);
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t) {
        for (int64_t c = 0; c < width; ++c) {
          const double now = at(x, t, c);
          const double before = t > offsets[s] ? at(x, t - 1, c) : load(last[s], real(), c);
          for (size_t m = 0; m < y.size(); ++m) {
            put(y[m], t, c, now + (before - now) * at(mix, static_cast<int64_t>(m), c));
          }
        }
      }
      for (int64_t c = 0; c < width; ++c) store(last[s], real(), c, at(x, offsets[s + 1] - 1, c));
    }
  }

  void linear(std::span<const LinearCall> calls) override {
    for (const LinearCall& call : calls) {
      const int64_t in = call.w->in(), out = call.w->out();
      RWKVX_ASSERT(call.x.dim(1) == in && call.y.dim(1) == out && call.x.dim(0) == call.y.dim(0));
      for (int64_t t = 0; t < call.x.dim(0); ++t) {
        for (int64_t o = 0; o < out; ++o) {
          double sum = 0;
          for (int64_t i = 0; i < in; ++i) sum += at(call.x, t, i) * at(call.w->weight, o, i);
          put(call.y, t, o, call.add ? at(call.y, t, o) + sum : activate(call.activation, sum));
        }
      }
    }
  }

  void wkv7_operands(const Wkv7Operands& op) override {
    const int64_t rows = op.k.dim(0), width = op.k.dim(1);
    for (int64_t t = 0; t < rows; ++t) {
      const double kept = !op.reset.empty() && op.reset[static_cast<size_t>(t)] != 0 ? 0 : 1;
      for (int64_t head = 0; head < width; head += kHeadSize) {
        double norm = 0;
        for (int64_t c = head; c < head + kHeadSize; ++c) norm += square(at(op.k, t, c) * at(op.k_k, c));
        norm = std::max(std::sqrt(norm), 1e-12);
        for (int64_t c = head; c < head + kHeadSize; ++c) {
          const double k = at(op.k, t, c), v = at(op.v, t, c);
          const double kappa = k * at(op.k_k, c) / norm;
          const double rate = sigmoid(at(op.a0, c) + at(op.rate, t, c));
          put(op.w, t, c, kept * std::exp(-std::exp(-0.5) * sigmoid(at(op.w0, c) + at(op.decay, t, c))));
          put(op.a, t, c, -kappa * kept);
          put(op.b, t, c, kappa * rate);
          put(op.k_out, t, c, k * (1 + (rate - 1) * at(op.k_a, c)));
          const bool first = !op.value_gate;
          put(op.v_out, t, c,
              first ? v : v + (at(op.v_first, t, c) - v) * sigmoid(at(op.v0, c) + at(op.value_gate, t, c)));
        }
      }
    }
  }

  void wkv7(const Wkv7Call& op) override {
    constexpr int64_t N = kHeadSize;
    int64_t interval = 0;
    for (size_t s = 0; s + 1 < op.offsets.size(); ++s) {
      for (int64_t t = op.offsets[s]; t < op.offsets[s + 1]; ++t) {
        if (op.kept && (t - op.offsets[s]) % kWkv7Interval == 0) {
          std::memcpy(op.kept.rows(interval, 1).data(), op.states[s], op.kept.rows(interval, 1).bytes());
          ++interval;
        }
        for (int64_t h = 0; h < op.r.dim(1) / N; ++h) {
          for (int64_t i = 0; i < N; ++i) {
            const int64_t row = (h * N + i) * N;
            double removed = 0, y = 0;  // (S a)ᵢ, (S r)ᵢ
            for (int64_t j = 0; j < N; ++j)
              removed += load(op.states[s], real(), row + j) * at(op.a, t, h * N + j);
            for (int64_t j = 0; j < N; ++j) {
              const int64_t c = h * N + j;
              const double next = load(op.states[s], real(), row + j) * at(op.w, t, c) +
                                  removed * at(op.b, t, c) + at(op.v, t, h * N + i) * at(op.k, t, c);
              store(op.states[s], real(), row + j, next);
              y += next * at(op.r, t, c);
            }
            put(op.y, t, h * N + i, y);
          }
        }
      }
    }
  }

  void wkv7_output(const Wkv7Output& op) override {
    for (int64_t t = 0; t < op.x.dim(0); ++t) {
      for (int64_t head = 0; head < op.x.dim(1); head += kHeadSize) {
        double bonus = 0;
        for (int64_t c = head; c < head + kHeadSize; ++c)
          bonus += at(op.r, t, c) * at(op.k, t, c) * at(op.r_k, c);
        normalize(op.x, t, head, kHeadSize, op.gain, op.bias, op.eps, [&](int64_t c, double value) {
          put(op.y, t, c, (value + bonus * at(op.v, t, c)) * at(op.g, t, c));
        });
      }
    }
  }

  void kv_append(ConstView k, ConstView v, std::span<const int64_t> offsets,
                 std::span<const KvChunks> kv) override {
    constexpr int64_t N = kHeadSize;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const KvChunks& to = kv[s];
      for (int64_t t = offsets[s]; t < offsets[s + 1]; ++t) {
        const int64_t position = to.length - offsets[s + 1] + t;
        for (int64_t h = 0; h < k.dim(1) / N; ++h) {
          reference::put_row(to, reference::Part::keys, h, position,
                             [&](int64_t n) { return at(k, t, h * N + n); });
          reference::put_row(to, reference::Part::values, h, position,
                             [&](int64_t n) { return at(v, t, h * N + n); });
          add_key(to, h, position);
        }
      }
    }
  }

  void chunk_attention(const ChunkAttention& op) override {
    for (size_t s = 0; s + 1 < op.offsets.size(); ++s) {
      for (int64_t t = op.offsets[s]; t < op.offsets[s + 1]; ++t) {
        const int64_t position = op.kv[s].length - op.offsets[s + 1] + t;
        for (int64_t h = 0; h < op.q.dim(1) / kHeadSize; ++h) attend(op, op.kv[s], t, position, h);
      }
    }
  }

  void kv_vote(const KvVote& op) override {
    constexpr int64_t N = kHeadSize;
    for (int64_t t = 0; t < op.q.dim(0); ++t) {
      for (int64_t h = 0; h < op.q.dim(1) / N; ++h) {
        std::vector<double> weights;
        double highest = -INFINITY, total = 0;
        for (int64_t j = 0; j <= op.first + t * op.step; ++j) {
          weights.push_back(score(op.q, t, op.kv, h, j));
          highest = std::max(highest, weights.back());
        }
        for (double& weight : weights) total += weight = std::exp(weight - highest);
        for (int64_t j = 0; j < op.votes.dim(1); ++j) {
          put(op.votes, h, j, at(op.votes, h, j) + weights[static_cast<size_t>(j)] / total);
        }
      }
    }
  }

  void kv_distinct(const KvDistinct& op) override {
    constexpr int64_t N = kHeadSize;
    const int64_t candidates = op.scores.dim(1);
    for (int64_t h = 0; h < op.scores.dim(0); ++h) {
      const auto key = [&](int64_t j, int64_t n) {
        return reference::kv_at(op.kv, reference::Part::keys, h, j, n);
      };
      std::vector<double> norms, sum(N, 0);
      for (int64_t j = 0; j < candidates; ++j) {
        double total = 0;
        for (int64_t n = 0; n < N; ++n) total += square(key(j, n));
        norms.push_back(std::sqrt(total));
        for (int64_t n = 0; n < N && total > 0; ++n) sum[static_cast<size_t>(n)] += key(j, n) / norms.back();
      }
      double norm = 0;
      for (const double x : sum) norm += square(x);
      norm = std::sqrt(norm);
      for (int64_t j = 0; j < candidates; ++j) {
        double product = 0;
        for (int64_t n = 0; n < N; ++n) product += key(j, n) * sum[static_cast<size_t>(n)];
        const double norms_of_both = norms[static_cast<size_t>(j)] * norm;
        put(op.scores, h, j, norms_of_both > 0 ? -product / norms_of_both : 0);
      }
    }
  }

  void kv_keep(const KvChunks& kv, ConstView kept) override {
    for (int64_t h = 0; h < kept.dim(0); ++h) {
      for (int64_t i = 0; i < kept.dim(1); ++i) {
        const int64_t from = kept.as<int32_t>()[h * kept.dim(1) + i];
        for (const auto part : {reference::Part::keys, reference::Part::values}) {
          reference::copy_row(kv, part, h, from, i);
        }
        add_key(kv, h, i);
      }
    }
  }

  void gather_rows(ConstView x, std::span<const int64_t> rows, View y) override {
    for (size_t i = 0; i < rows.size(); ++i) {
      for (int64_t c = 0; c < x.dim(1); ++c) put(y, static_cast<int64_t>(i), c, at(x, rows[i], c));
    }
  }

  void upload(std::span<const std::byte> host, void* device) override {
    std::memcpy(device, host.data(), host.size());
  }
  void download(const void* device, std::span<std::byte> host) override {
    std::memcpy(host.data(), device, host.size());
  }

  TrainingOps& training() override { return *training_; }

 private:
  static double square(double x) { return x * x; }

  /// Calls put_one(column, value) for columns begin .. begin + width of row t, normalised.
  template <typename Put>
  static void normalize(ConstView x, int64_t t, int64_t begin, int64_t width, ConstView gain, ConstView bias,
                        float eps, Put put_one) {
    double mean = 0, variance = 0;
    for (int64_t c = begin; c < begin + width; ++c) mean += at(x, t, c);
    mean /= static_cast<double>(width);
    for (int64_t c = begin; c < begin + width; ++c) variance += square(at(x, t, c) - mean);
    variance /= static_cast<double>(width);
    const double scale = 1 / std::sqrt(variance + static_cast<double>(eps));
    for (int64_t c = begin; c < begin + width; ++c) {
      put_one(c, (at(x, t, c) - mean) * scale * at(gain, c) + at(bias, c));
    }
  }

  /// The sums take the key that was just stored.
  void add_key(const KvChunks& kv, int64_t h, int64_t position) const {
    const auto chunk = static_cast<size_t>(position / kv.chunk_size);
    const int64_t slot = position % kv.chunk_size;
    const auto add = [&](void* sums, int64_t row, bool first) {
      for (int64_t n = 0; n < kHeadSize; ++n) {
        const int64_t i = row * kHeadSize + n;
        const double before = first ? 0 : load(sums, real(), i);
        store(sums, real(), i, before + reference::kv_at(kv, reference::Part::keys, h, position, n));
      }
    };
    add(kv.key_sums[chunk], h, slot == 0);
    if (kv.part == 0) return;
    add(kv.part_sums[chunk], h * (kv.chunk_size / kv.part) + slot / kv.part, slot % kv.part == 0);
  }

  /// q·k / √N of row t and a stored token.
  static double score(ConstView q, int64_t t, const KvChunks& kv, int64_t h, int64_t token) {
    double dot = 0;
    for (int64_t n = 0; n < kHeadSize; ++n) {
      dot += at(q, t, h * kHeadSize + n) * reference::kv_at(kv, reference::Part::keys, h, token, n);
    }
    return dot / std::sqrt(static_cast<double>(kHeadSize));
  }

  void attend(const ChunkAttention& op, const KvChunks& kv, int64_t t, int64_t position, int64_t h) const {
    constexpr int64_t N = kHeadSize;
    const int64_t B = kv.chunk_size, own = position / B;
    std::vector<std::pair<double, int64_t>> gates;  // (−gate, chunk): sorts by gate, then by chunk
    for (int64_t j = 0; j < own; ++j) {
      double gate = -INFINITY;
      const int64_t parts = kv.part > 0 ? B / kv.part : 1;
      const void* sums = (kv.part > 0 ? kv.part_sums : kv.key_sums)[static_cast<size_t>(j)];
      for (int64_t part = 0; part < parts; ++part) {
        double product = 0;
        for (int64_t n = 0; n < N; ++n) {
          product += at(op.q, t, h * N + n) * load(sums, real(), (h * parts + part) * N + n);
        }
        gate = std::max(gate, product);
      }
      gates.emplace_back(-gate / static_cast<double>(B), j);
    }
    const auto kept = std::min<size_t>(gates.size(), static_cast<size_t>(op.top_k - 1));
    std::partial_sort(gates.begin(), gates.begin() + static_cast<std::ptrdiff_t>(kept), gates.end());
    gates.resize(kept);
    if (op.chosen) {
      const int64_t slots = op.top_k - 1;
      int32_t* chosen = op.chosen.as<int32_t>() + (t * (op.q.dim(1) / N) + h) * slots;
      for (int64_t i = 0; i < slots; ++i) {
        const auto slot = static_cast<size_t>(i);
        chosen[i] = slot < kept ? static_cast<int32_t>(gates[slot].second) : -1;
      }
    }
    gates.emplace_back(0, own);

    std::vector<double> scores;
    double highest = -INFINITY;
    for (const auto& [gate, chunk] : gates) {
      const int64_t keys = chunk == own ? position % B + 1 : B;
      for (int64_t i = 0; i < keys; ++i) {
        scores.push_back(score(op.q, t, kv, h, chunk * B + i));
        highest = std::max(highest, scores.back());
      }
    }
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - highest);
    if (op.lse) put(op.lse, t, h, highest + std::log(total));
    for (int64_t n = 0; n < N; ++n) {
      double sum = 0;
      size_t next = 0;
      for (const auto& [gate, chunk] : gates) {
        const int64_t keys = chunk == own ? position % B + 1 : B;
        for (int64_t i = 0; i < keys; ++i) {
          sum += scores[next++] * reference::kv_at(kv, reference::Part::values, h, chunk * B + i, n);
        }
      }
      put(op.y, t, h * N + n, sum / total);
    }
  }

  Precision precision_;
  std::unique_ptr<TrainingOps> training_ = make_reference_training();
};

}  // namespace

std::unique_ptr<Ops> make_reference_ops(Precision precision) {
  return std::make_unique<ReferenceOps>(precision);
}

}  // namespace rwkvx
