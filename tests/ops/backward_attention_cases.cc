#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <list>
#include <set>

#include "cases.h"
#include "kv_pages.h"
#include "ops/training.h"

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

/// Pages of all sequences of a case, filled by kv_append from k and v.
struct Pages {
  std::list<Buffer> buffers;
  std::list<std::vector<void*>> pointers;
  std::vector<KvChunks> kv;

  Pages(Ops& ops, const std::vector<int64_t>& offsets, int64_t heads, int64_t chunk_size, DType dtype) {
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      const int64_t length = offsets[s + 1] - offsets[s];
      const auto pages = [&](DType type, Shape shape) {
        std::vector<void*> list;
        for (int64_t begin = 0; begin < length; begin += chunk_size) {
          buffers.emplace_back(type, shape, ops.allocator());
          list.push_back(buffers.back().view().data());
        }
        pointers.push_back(std::move(list));
        return std::span<void* const>(pointers.back());
      };
      KvChunks one;
      one.chunk_size = chunk_size;
      one.length = length;
      one.dtype = dtype;
      one.keys = pages(dtype, {heads, chunk_size, N});
      one.values = pages(dtype, {heads, chunk_size, N});
      one.key_sums = pages(ops.real(), {heads, N});
      kv.push_back(one);
    }
  }
};

/// Keys and values that training would store: rounded to bf16 in bf16 precision, which is the identity for
/// the gradient.
struct AttentionCase : GradientCase {
  int64_t heads, chunk_size, top_k;
  std::vector<int64_t> offsets;
  bool bf16 = false;
  AttentionCase(int64_t h, int64_t b, int64_t k, std::vector<int64_t> o, bool f)
      : heads(h), chunk_size(b), top_k(k), offsets(std::move(o)), bf16(f) {}
  bool differentiable() const override { return !bf16; }
  std::string sizes() const {
    return fmt::format("H={} B={} top_k={} offsets {}{}", heads, chunk_size, top_k, offsets,
                       bf16 ? " bf16" : "");
  }
  /// Fills the pages; the call has everything but outputs.
  ChunkAttention inputs(Run& run, std::list<Pages>& pages) const {
    const Shape all{offsets.back(), heads * N};
    ChunkAttention call;
    call.q = run.input("q", kReal, all, normal());
    const auto k = run.input("k", kReal, all, normal()), v = run.input("v", kReal, all, normal());
    pages.emplace_back(run.ops(), offsets, heads, chunk_size, bf16 ? DType::bf16 : run.ops().real());
    call.offsets = offsets;
    call.kv = pages.back().kv;
    call.top_k = top_k;
    run.ops().kv_append(k, v, offsets, call.kv);
    return call;
  }
  int64_t longest() const {
    int64_t most = 0;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) most = std::max(most, offsets[s + 1] - offsets[s]);
    return most;
  }
};

struct AttentionBackward final : AttentionCase {
  using AttentionCase::AttentionCase;
  std::string describe() const override { return "chunk_attention_backward " + sizes(); }
  void forward(Run& run) const override {
    std::list<Pages> pages;
    ChunkAttention call = inputs(run, pages);
    call.y = run.output("y", kReal, {offsets.back(), heads * N});
    run.ops().chunk_attention(call);
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), heads * N};
    std::list<Pages> pages;
    ChunkAttention call = inputs(run, pages);
    call.y = run.output("y", kActive, all);
    call.lse = run.output("lse", kReal, {offsets.back(), heads});
    Buffer chosen(DType::i32, {offsets.back(), heads, top_k - 1}, run.ops().allocator());
    call.chosen = chosen;
    run.ops().chunk_attention(call);
    ChunkAttentionGradients g;
    g.dy = run.input("dy", kReal, all, normal());
    g.dq = run.output("dq", kReal, all);
    g.dk = run.output("dk", kReal, all);
    g.dv = run.output("dv", kReal, all);
    run.ops().training().chunk_attention_backward(call, g);
  }
  /// A score and D are sums of 64 products; p is off by their errors. dk and dv sum over up to all later rows
  /// of a sequence, dq over the keys seen. In bf16, D multiplies with a rounded y.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double q = reference.max_norm("q", N), k = reference.max_norm("k", N),
                 v = reference.max_norm("v", N), dy = reference.max_norm("dy", N);
    // In bf16 on tensor cores: q, the weights, dy and the gradients of scores are rounded.
    const bool rounds = reference.rounds_attention();
    const double largest = std::max(reference.max_abs("q"), reference.max_abs("k"));
    const double rounded = rounds ? kBf16 : 0;
    const double score = sum_error(N) * q * k / 8 + 8 * kF32 + (rounds ? rounded_score(q, largest) : 0);
    if (output == "y") return {6 * (2 * score + sum_error(longest()) + rounded), 0};
    if (output == "lse") return {score + sum_error(longest()) + 8 * kF32 * 16, 0};
    const double delta = sum_error(N) * dy * v + (reference.rounds_to_bf16() ? 8 * kBf16 * dy : 0);
    const auto terms = static_cast<double>(longest());
    const double ds = (score * 2 * dy * v + 2 * delta) / 8;  // times p, which sums to 1 over the keys
    const double sum = sum_error(longest()) + rounded;
    if (output == "dq") return {6 * (ds + sum * 2 * dy * v / 8), 0};
    if (output == "dk") return {6 * std::sqrt(terms) * (ds + sum * 2 * dy * v / 8), 0};
    return {6 * std::sqrt(terms) * (score + sum), 0};
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    if (longest() == 1 && (output == "dq" || output == "dk")) return INFINITY;  // they are zero
    if (output == "lse") return reference.rounds_attention() ? kBf16 / 2 : 64 * kF32;
    return reference.rounds_to_bf16() ? kBf16 : 64 * kF32;
  }
};

/// Losses of sampled queries, against full attention.
struct SampledCase : AttentionCase {
  using AttentionCase::AttentionCase;
  static constexpr float kScale = 0.3f;
  std::vector<int64_t> rows() const {
    std::vector<int64_t> sampled;
    for (int64_t t = offsets.back() - 1; t >= 0; t -= 3) sampled.insert(sampled.begin(), t);
    return sampled;
  }
  void forward(Run& run) const override {
    const Shape all{offsets.back(), heads * N};
    run.input("q", kReal, all, normal());
    run.input("k", kReal, all, normal());
  }
  /// What GateLoss and PointingLoss have in common.
  template <typename Loss>
  void set_up(Run& run, const std::vector<int64_t>& sampled, Loss& loss) const {
    const Shape all{offsets.back(), heads * N}, shape{static_cast<int64_t>(sampled.size()), heads};
    loss.rows = sampled;
    loss.scale = kScale;
    loss.losses = run.output("losses", kReal, shape);
    loss.hits = run.output("hits", kReal, shape);
    loss.dq = run.inout("dq", kReal, all, normal());
    loss.dk = run.inout("dk", kReal, all, normal());
  }
  size_t sequence_of(int64_t row) const {
    size_t s = 0;
    while (offsets[s + 1] <= row) ++s;
    return s;
  }
  /// None, one, two or three of the rows up to each sampled one.
  struct Mentioned {
    std::vector<int64_t> ends, rows;
  };
  Mentioned mentioned() const {
    Mentioned list;
    for (const int64_t row : rows()) {
      const int64_t first = offsets[sequence_of(row)], count = (row / 3) % 4;
      for (int64_t i = 0; i < count && row - 5 * i * i >= first; ++i)
        list.rows.push_back(i == 0 ? first + (row - first) * 2 / 3 : first + (row - first) / (3 + 2 * i));
      std::sort(list.rows.begin() + (list.ends.empty() ? 0 : list.ends.back()), list.rows.end());
      list.rows.erase(
          std::unique(list.rows.begin() + (list.ends.empty() ? 0 : list.ends.back()), list.rows.end()),
          list.rows.end());
      list.ends.push_back(static_cast<int64_t>(list.rows.size()));
    }
    return list;
  }
  double dot(const std::vector<double>& q, const std::vector<double>& k, int64_t query, int64_t key,
             int64_t h) const {
    double sum = 0;
    for (int64_t n = 0; n < N; ++n) {
      sum += q[static_cast<size_t>((query * heads + h) * N + n)] *
             k[static_cast<size_t>((key * heads + h) * N + n)];
    }
    return sum;
  }
};

struct GateLossCase final : SampledCase {
  GateLossCase(int64_t h, int64_t b, int64_t k, std::vector<int64_t> o, bool f, bool known)
      : SampledCase(h, b, k, std::move(o), f), mentions_known(known) {}
  bool mentions_known;
  std::string describe() const override {
    return "gate_loss " + sizes() + (mentions_known ? " with mentions" : "");
  }
  /// From the definition. The masses are constants: those of the unchanged q and k.
  double loss(const Run& forward, const Run& backward) const override {
    double sum = 0;
    const auto sampled = rows();
    const Mentioned list = mentioned();
    for (size_t i = 0; i < sampled.size(); ++i) {
      const int64_t row = sampled[i];
      const size_t s = sequence_of(row);
      std::set<int64_t> only;
      if (mentions_known) {
        for (const int64_t mention : Mentions{list.ends, list.rows}.of(i)) only.insert(mention);
      }
      for (int64_t h = 0; h < heads; ++h) {
        const auto mass = masses(backward.initial("q"), backward.initial("k"), offsets[s], row, h, only);
        const auto gate = gates(forward.initial("q"), forward.initial("k"), offsets[s], row, h);
        double total = 0;
        for (const double g : gate) total += std::exp(g);
        for (size_t j = 0; j < gate.size(); ++j) sum -= mass[j] * (gate[j] - std::log(total));
      }
    }
    return static_cast<double>(kScale) * sum;
  }
  void run(Run& run) const override {
    std::list<Pages> pages;
    const ChunkAttention call = inputs(run, pages);
    const auto sampled = rows();
    const Mentioned list = mentioned();
    GateLoss loss;
    set_up(run, sampled, loss);
    if (mentions_known) loss.mentions = Mentions{list.ends, list.rows};
    run.ops().training().gate_loss(call, loss);
  }
  /// Gates are unscaled sums of 64 products with means of B keys; shares are off by their errors.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    if (output == "hits") return {};
    const double q = reference.max_norm("q", N), k = reference.max_norm("k", N);
    const double gate = (sum_error(N) + sum_error(chunk_size)) * q * k + 8 * kF32;
    if (output == "losses") return {2 * gate + sum_error(longest()) * 8 + 40 * kF32, 0};
    const auto samples = static_cast<double>(rows().size());
    const double dgate = static_cast<double>(kScale) * (3 * gate + sum_error(longest()));
    return {6 * dgate * std::sqrt(samples) + 8 * kF32 * 6, 4 * kF32};
  }

 private:
  /// q · mean key of each chunk before that of `row`; the sequence begins at row `first`.
  std::vector<double> gates(const std::vector<double>& q, const std::vector<double>& k, int64_t first,
                            int64_t row, int64_t h) const {
    std::vector<double> gate(static_cast<size_t>((row - first) / chunk_size), 0.0);
    for (size_t i = 0; i < gate.size() * static_cast<size_t>(chunk_size); ++i) {
      gate[i / static_cast<size_t>(chunk_size)] +=
          dot(q, k, row, first + static_cast<int64_t>(i), h) / static_cast<double>(chunk_size);
    }
    return gate;
  }
  std::vector<double> masses(const std::vector<double>& q, const std::vector<double>& k, int64_t first,
                             int64_t row, int64_t h, const std::set<int64_t>& only) const {
    std::vector<double> mass(static_cast<size_t>((row - first) / chunk_size + 1), 0.0);
    double total = 0;
    for (int64_t i = first; i <= row; ++i) {
      const double p = only.empty() || only.contains(i) ? std::exp(dot(q, k, row, i, h) / 8) : 0;
      mass[static_cast<size_t>((i - first) / chunk_size)] += p;
      total += p;
    }
    for (double& m : mass) m /= total;
    return mass;
  }
};

struct PointingLossCase final : SampledCase {
  using SampledCase::SampledCase;
  std::string describe() const override { return "pointing_loss " + sizes(); }
  /// From the definition.
  double loss(const Run& forward, const Run&) const override {
    double sum = 0;
    const auto sampled = rows();
    const Mentioned list = mentioned();
    const std::vector<double> q = forward.initial("q"), k = forward.initial("k");
    for (size_t i = 0; i < sampled.size(); ++i) {
      const auto mentions = Mentions{list.ends, list.rows}.of(i);
      for (int64_t h = 0; h < heads && !mentions.empty(); ++h) {
        const auto p = [&](int64_t key) { return std::exp(dot(q, k, sampled[i], key, h) / 8); };
        double all = 0, some = 0;
        for (int64_t key = offsets[sequence_of(sampled[i])]; key <= sampled[i]; ++key) all += p(key);
        for (const int64_t key : mentions) some += p(key);
        sum += std::log(all / some);
      }
    }
    return static_cast<double>(kScale) * sum;
  }
  void run(Run& run) const override {
    std::list<Pages> pages;
    const ChunkAttention call = inputs(run, pages);
    const auto sampled = rows();
    const Mentioned list = mentioned();
    PointingLoss loss;
    set_up(run, sampled, loss);
    loss.mentions = {list.ends, list.rows};
    run.ops().training().pointing_loss(call, loss);
  }
  /// Scores are sums of 64 products, scaled with 1/8; shares are off by their errors.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    if (output == "hits") return {};
    const double q = reference.max_norm("q", N), k = reference.max_norm("k", N);
    const double score = sum_error(N) * q * k / 8 + 8 * kF32;
    if (output == "losses") return {2 * score + sum_error(longest()) * 8 + 40 * kF32, 0};
    const auto samples = static_cast<double>(rows().size());
    const double ds = static_cast<double>(kScale) * (3 * score + sum_error(longest())) / 8;
    return {6 * ds * std::sqrt(samples) + 8 * kF32 * 6, 4 * kF32};
  }
};

}  // namespace

Cases chunk_attention_backward_cases(Precision) {
  Cases cases;
  const auto add = [&](int64_t heads, int64_t chunk, int64_t top_k, std::vector<int64_t> offsets) {
    for (const bool bf16 : {false, true}) {
      cases.push_back(std::make_unique<AttentionBackward>(heads, chunk, top_k, offsets, bf16));
    }
  };
  for (const int64_t rows : {1, 15, 16, 17, 33, 65}) add(1, 16, 3, {0, rows});
  add(2, 16, 3, {0, 1, 40, 57});
  add(1, 7, 4, {0, 60});
  add(1, 1, 3, {0, 20});
  add(2, 16, 1, {0, 40});  // the own chunk only
  add(1, 8, 20, {0, 70});  // all there are
  add(1, 64, 3, {0, 300});
  return cases;
}

Cases gate_loss_cases(Precision) {
  Cases cases;
  const auto add = [&](int64_t heads, int64_t chunk, std::vector<int64_t> offsets) {
    for (const bool bf16 : {false, true}) {
      for (const bool known : {false, true})
        cases.push_back(std::make_unique<GateLossCase>(heads, chunk, 3, offsets, bf16, known));
    }
  };
  add(1, 16, {0, 16});
  add(1, 16, {0, 33});
  add(2, 16, {0, 1, 40, 97});
  add(1, 7, {0, 60});
  add(2, 64, {0, 300});
  return cases;
}

Cases pointing_loss_cases(Precision) {
  Cases cases;
  const auto add = [&](int64_t heads, int64_t chunk, std::vector<int64_t> offsets) {
    for (const bool bf16 : {false, true})
      cases.push_back(std::make_unique<PointingLossCase>(heads, chunk, 3, offsets, bf16));
  };
  add(1, 16, {0, 1});
  add(1, 16, {0, 33});
  add(2, 16, {0, 1, 40, 97});
  add(1, 7, {0, 60});
  add(2, 64, {0, 300});
  return cases;
}

}  // namespace rwkvx::test
