#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "ops/training.h"

namespace rwkvx::test {
namespace {

struct EmbedBackward final : GradientCase {
  int64_t rows, width;
  EmbedBackward(int64_t r, int64_t c) : rows(r), width(c) {}
  static constexpr int64_t kVocabulary = 11;  // so that tokens repeat
  std::string describe() const override { return fmt::format("embed_backward R={} C={}", rows, width); }
  std::vector<int32_t> tokens() const {
    Random random(static_cast<uint64_t>(rows));
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < rows; ++i) ids.push_back(static_cast<int32_t>(random.next() % kVocabulary));
    return ids;
  }
  void forward(Run& run) const override {
    const auto table = run.input("table", kReal, {kVocabulary, width}, normal());
    run.ops().embed(tokens(), table, run.output("y", kReal, {rows, width}));
  }
  void run(Run& run) const override {
    run.input("table", kReal, {kVocabulary, width}, normal());
    const auto dy = run.input("dy", kReal, {rows, width}, normal());
    run.ops().training().embed_backward(tokens(), dy,
                                        run.inout("dtable", kReal, {kVocabulary, width}, normal()));
  }
  Tolerance tolerance(const Run& reference, const std::string&) const override {
    return {sum_error(rows) * reference.max_abs("dy") * std::sqrt(static_cast<double>(rows)), 0};
  }
};

struct LayerNormCase final : GradientCase {
  int64_t rows, width;
  bool add, frozen, in_place;
  LayerNormCase(int64_t r, int64_t c, bool a, bool f, bool p)
      : rows(r), width(c), add(a), frozen(f), in_place(p) {}
  bool differentiable() const override { return !in_place; }
  std::string describe() const override {
    return fmt::format("layer_norm_backward R={} C={}{}{}{}", rows, width, add ? " add" : "",
                       frozen ? " frozen" : "", in_place ? " in place" : "");
  }
  LayerNormBackward inputs(Run& run, ConstView& bias) const {
    LayerNormBackward call;
    call.x = run.input("x", kReal, {rows, width}, normal(2));
    call.gain = run.input("gain", kReal, {width}, normal());
    bias = run.input("bias", kReal, {width}, normal());
    return call;
  }
  void forward(Run& run) const override {
    ConstView bias;
    const auto call = inputs(run, bias);
    run.ops().layer_norm(call.x, call.gain, bias, 1e-5f, run.output("y", kReal, {rows, width}));
  }
  void run(Run& run) const override {
    ConstView bias;
    auto call = inputs(run, bias);
    if (in_place) {
      call.dx = run.inout("dy", kReal, {rows, width}, normal());
      call.dy = call.dx;
    } else {
      call.dy = run.input("dy", kReal, {rows, width}, normal());
      call.dx =
          add ? run.inout("dx", kReal, {rows, width}, normal()) : run.output("dx", kReal, {rows, width});
    }
    call.add = add;
    if (!frozen) {
      call.dgain = run.inout("dgain", kReal, {width}, normal());
      call.dbias = run.inout("dbias", kReal, {width}, normal());
    }
    run.ops().training().layer_norm_backward(call);
  }
  /// As forward: normal values n (within ±6) are off by sum_error(C)·(largest x·scale + n); the two means are
  /// sums of C terms. Parameters sum R rows.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double g = 6 * std::max(1.0, reference.max_abs("gain")), n = 6;
    const double n_error = sum_error(width) * 2 * n;
    if (output == "dgain" || output == "dbias") {
      const auto all = static_cast<double>(rows);
      return {std::sqrt(all) * 6 * n_error + sum_error(rows) * 6 * n * std::sqrt(all), 2 * kF32};
    }
    return {2 * g * (n_error * n + n_error), 4 * kF32};
  }
};

struct TokenShiftCase final : GradientCase {
  int64_t width, mixes;
  std::vector<int64_t> offsets;
  bool frozen;
  bool piece;  // of longer sequences
  TokenShiftCase(int64_t c, int64_t m, std::vector<int64_t> o, bool f, bool p = false)
      : width(c), mixes(m), offsets(std::move(o)), frozen(f), piece(p) {}
  bool differentiable() const override { return !piece; }  // the forward has no gradient from without
  std::string describe() const override {
    return fmt::format("token_shift_backward C={} M={} offsets {}{}{}", width, mixes, offsets,
                       frozen ? " frozen" : "", piece ? " piece" : "");
  }
  void forward(Run& run) const override {
    const int64_t rows = offsets.back();
    const auto x = run.input("x", kReal, {rows, width}, normal());
    const auto mix = run.input("mix", kReal, {mixes, width}, uniform(0, 1));
    const Values nothing = [](Random&) { return 0.0; };
    std::vector<void*> last;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      last.push_back(run.inout(fmt::format("last{}", s), kReal, {width}, nothing).data());
    }
    std::vector<View> y;
    for (int64_t m = 0; m < mixes; ++m) y.push_back(run.output(fmt::format("y{}", m), kReal, {rows, width}));
    run.ops().token_shift(x, mix, offsets, last, y);
  }
  void run(Run& run) const override {
    const int64_t rows = offsets.back();
    TokenShiftBackward call;
    call.x = run.input("x", kReal, {rows, width}, normal());
    call.mix = run.input("mix", kReal, {mixes, width}, uniform(0, 1));
    std::vector<View> dy;
    for (int64_t m = 0; m < mixes; ++m) {
      const auto one = run.input(fmt::format("dy{}", m), kReal, {rows, width}, normal());
      dy.emplace_back(const_cast<void*>(one.data()), one.dtype(), one.shape());
    }
    call.offsets = offsets;
    call.dy = dy;
    call.dx = run.output("dx", kReal, {rows, width});
    if (!frozen) call.dmix = run.inout("dmix", kReal, {mixes, width}, normal());
    if (piece) {
      call.around.before = run.input("before", kReal, {width}, normal());
      const View carry = run.inout("carry", kReal, {width}, normal());
      call.around.from_after = carry;
      call.around.to_before = carry;
    }
    run.ops().training().token_shift_backward(call);
  }
  /// Sums of 2 M terms, or of R products with differences.
  Tolerance tolerance(const Run&, const std::string& output) const override {
    if (output == "dx" || output == "carry")
      return {sum_error(2 * mixes) * 8 * std::sqrt(static_cast<double>(2 * mixes)), 0};
    const auto rows = static_cast<double>(offsets.back());
    return {(sum_error(offsets.back()) + 4 * kF32) * 16 * std::sqrt(rows), 2 * kF32};
  }
};

struct CrossEntropyCase final : GradientCase {
  int64_t rows, vocabulary;
  bool in_place, l2wrap;
  CrossEntropyCase(int64_t r, int64_t v, bool p, bool l) : rows(r), vocabulary(v), in_place(p), l2wrap(l) {}
  bool differentiable() const override { return !in_place; }
  std::string describe() const override {
    return fmt::format("cross_entropy R={} V={}{}{}", rows, vocabulary, in_place ? " in place" : "",
                       l2wrap ? " l2wrap" : "");
  }
  CrossEntropy call(std::vector<int32_t>& targets, std::vector<float>& weights) const {
    Random random(static_cast<uint64_t>(rows * vocabulary));
    for (int64_t i = 0; i < rows; ++i) {
      targets.push_back(i % 5 == 3 ? -1
                                   : static_cast<int32_t>(random.next() % static_cast<uint64_t>(vocabulary)));
      weights.push_back(static_cast<float>(random.uniform() * 3));
    }
    CrossEntropy result;
    result.targets = targets;
    result.weights = weights;
    result.scale = 0.25f;
    result.l2wrap = l2wrap ? 0.125f : 0;
    return result;
  }
  void forward(Run& run) const override {
    std::vector<int32_t> targets;
    std::vector<float> weights;
    CrossEntropy one = call(targets, weights);
    one.logits = run.input("logits", kReal, {rows, vocabulary}, normal(4));
    one.losses = run.output("losses", kReal, {rows});
    run.ops().training().cross_entropy(one);
  }
  void run(Run& run) const override {
    std::vector<int32_t> targets;
    std::vector<float> weights;
    CrossEntropy one = call(targets, weights);
    if (in_place) {
      one.dlogits = run.inout("logits", kReal, {rows, vocabulary}, normal(4));
      one.logits = one.dlogits;
    } else {
      one.logits = run.input("logits", kReal, {rows, vocabulary}, normal(4));
      one.dlogits = run.output("dlogits", kReal, {rows, vocabulary});
    }
    one.losses = run.output("losses", kReal, {rows});
    if (!in_place) one.hits = run.output("hits", kReal, {rows});
    run.ops().training().cross_entropy(one);
  }
  double loss(const Run& forward, const Run&) const override {
    std::vector<int32_t> targets;
    std::vector<float> weights;
    const CrossEntropy one = call(targets, weights);
    const auto losses = forward.values("losses"), logits = forward.values("logits");
    double sum = 0;
    for (size_t t = 0; t < losses.size(); ++t) {
      if (targets[t] < 0) continue;
      const auto row = logits.begin() + static_cast<std::ptrdiff_t>(t) * vocabulary;
      const double highest = *std::max_element(row, row + vocabulary);
      sum += static_cast<double>(one.scale) * (static_cast<double>(weights[t]) * losses[t] +
                                               static_cast<double>(one.l2wrap) * 0.5 * highest * highest);
    }
    return sum;
  }
  /// Logits are within ±16, so an exponent is off by 32u, and the sum of V of them by sum_error(V). log adds
  /// as much, and the roundings of its terms, of size log V + 32.
  Tolerance tolerance(const Run&, const std::string& output) const override {
    const double relative = 40 * kF32 + sum_error(vocabulary);
    if (output == "losses")
      return {relative + 4 * kF32 * (16 + std::log(static_cast<double>(vocabulary))), 2 * kF32};
    return {0.25 * (3 * relative + 0.125 * 16 * 4 * kF32), 4 * kF32};
  }
};

/// Two steps, so that moments and corrections matter.
struct AdamWCase final : OpCase {
  int64_t elements;
  DType weight;
  bool decay;
  AdamWCase(int64_t n, DType w, bool d) : elements(n), weight(w), decay(d) {}
  std::string describe() const override {
    return fmt::format("adamw n={} {}{}", elements, name(weight), decay ? " decay" : "");
  }
  void run(Run& run) const override {
    const Shape shape{elements};
    AdamWTensor tensor;
    tensor.master = run.inout("master", kReal, shape, normal());
    tensor.moment1 = run.inout("moment1", kReal, shape, normal());
    tensor.moment2 = run.inout("moment2", kReal, shape, uniform(0.01, 2));
    tensor.weight = weight == DType::f32 ? tensor.master : run.output("weight", fixed(weight), shape);
    tensor.decay = decay;
    tensor.rate_factor = 2;
    AdamWStep step{.step = 3, .rate = 0.01, .beta1 = 0.9, .beta2 = 0.99, .decay = 0.1, .gradient_scale = 0.5};
    for (const char* gradient : {"gradient a", "gradient b"}) {
      tensor.gradient = run.input(gradient, kReal, shape, normal());
      run.ops().training().adamw(std::span(&tensor, 1), step);
      ++step.step;
    }
  }
  /// Some ten roundings of values below 10; steps are below 0.02 · 6 / 0.1. The bf16 weight is the rounded
  /// master: it can differ by a unit in its last place.
  Tolerance tolerance(const Run&, const std::string& output) const override {
    if (output == "weight") return {1e-6, kBf16};
    return {20 * kF32 * 4, 10 * kF32};
  }
};

}  // namespace

Cases embed_backward_cases(Precision) {
  Cases cases;
  for (const int64_t rows : {1, 7, 129}) cases.push_back(std::make_unique<EmbedBackward>(rows, 64));
  return cases;
}

Cases layer_norm_backward_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192, 768}) {
    for (const int64_t rows : {1, 3, 129}) {
      cases.push_back(std::make_unique<LayerNormCase>(rows, width, rows != 3, false, false));
    }
  }
  cases.push_back(std::make_unique<LayerNormCase>(5, 128, true, true, false));
  cases.push_back(std::make_unique<LayerNormCase>(5, 128, false, false, true));
  return cases;
}

Cases token_shift_backward_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192}) {
    for (const int64_t rows : {1, 2, 33, 129}) {
      for (auto& offsets : ragged(rows)) {
        cases.push_back(
            std::make_unique<TokenShiftCase>(width, rows % 2 == 0 ? 6 : 1, std::move(offsets), rows == 2));
      }
    }
  }
  cases.push_back(std::make_unique<TokenShiftCase>(128, 6, std::vector<int64_t>{0, 3, 70}, false));
  for (auto& offsets : {std::vector<int64_t>{0, 1}, {0, 40}, {0, 1, 70}}) {
    cases.push_back(std::make_unique<TokenShiftCase>(64, 6, offsets, false, true));
  }
  return cases;
}

Cases cross_entropy_cases(Precision) {
  Cases cases;
  for (const int64_t vocabulary : {1, 5, 160, 256, 3001}) {
    for (const bool in_place : {false, true}) {
      cases.push_back(std::make_unique<CrossEntropyCase>(9, vocabulary, in_place, !in_place));
    }
  }
  cases.push_back(std::make_unique<CrossEntropyCase>(1, 256, false, false));
  return cases;
}

Cases adamw_cases(Precision) {
  Cases cases;
  for (const int64_t elements : {1, 7, 64, 1000}) {
    for (const DType weight : {DType::f32, DType::bf16}) {
      cases.push_back(std::make_unique<AdamWCase>(elements, weight, elements != 7));
    }
  }
  return cases;
}

}  // namespace rwkvx::test
