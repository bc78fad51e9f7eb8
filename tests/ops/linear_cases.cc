#include <fmt/format.h>

#include <cmath>

#include "cases.h"

namespace rwkvx::test {
namespace {

std::string_view name_of(Activation activation) {
  switch (activation) {
    case Activation::none:
      return "none";
    case Activation::tanh:
      return "tanh";
    case Activation::sigmoid:
      return "sigmoid";
    case Activation::relu_squared:
      return "relu²";
  }
  return "?";
}

struct Product {
  int64_t in, out;
  DType weight;
  Type y = kReal;
  Activation activation = Activation::none;
  bool add = false;
  double zeros = 0;  ///< share of x, announced to prepare()
};

/// One call of linear() with one or several products of the same number of rows.
struct LinearCase final : OpCase {
  int64_t rows;
  std::vector<Product> products;
  Precision precision;
  LinearCase(int64_t r, std::vector<Product> p, Precision q)
      : rows(r), products(std::move(p)), precision(q) {}

  std::string describe() const override {
    std::string text = fmt::format("linear R={}", rows);
    for (const Product& p : products) {
      text += fmt::format(" [{}→{} {} {}{}{}{}]", p.in, p.out, name(p.weight), name_of(p.activation),
                          p.add ? " add" : "", p.y.kind == Type::Kind::active ? " active" : "",
                          p.zeros > 0 ? fmt::format(" {} zeros", p.zeros) : "");
    }
    return text;
  }

  void run(Run& run) const override {
    std::vector<Matrix> matrices;
    std::vector<LinearCall> calls;
    for (size_t i = 0; i < products.size(); ++i) {
      const Product& p = products[i];
      // Results of deviation ~ 1, where the activations bend.
      const double deviation = 1 / std::sqrt(static_cast<double>(p.in));
      matrices.push_back(run.ops().prepare(
          run.input(fmt::format("w{}", i), fixed(p.weight), {p.out, p.in}, normal(deviation)), p.zeros > 0));
    }
    for (size_t i = 0; i < products.size(); ++i) {
      const Product& p = products[i];
      LinearCall call;
      call.x = run.input(fmt::format("x{}", i), kActive, {rows, p.in}, [&](Random& random) {
        const double value = random.normal();
        return p.zeros > 0 && random.uniform() < p.zeros ? 0 : value;
      });
      call.w = &matrices[i];
      const std::string y = fmt::format("y{}", i);
      call.y = p.add ? run.inout(y, p.y, {rows, p.out}, normal()) : run.output(y, p.y, {rows, p.out});
      call.activation = p.activation;
      call.add = p.add;
      calls.push_back(call);
    }
    run.ops().linear(calls);
  }

  /// A sum of `in` products; Σ|x·w| ≤ ‖x‖·‖w‖. tanh and σ have slopes ≤ 1, x² has 2·|x|. Elementary functions
  /// are good to 4 units in the last place.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const auto i = static_cast<size_t>(std::stoi(output.substr(1)));
    const Product& p = products[i];
    const double size =
        reference.max_norm(fmt::format("x{}", i), p.in) * reference.max_norm(fmt::format("w{}", i), p.in);
    double error = sum_error(p.in) * size;
    if (is_quantised(p.weight) && precision == Precision::bf16) {
      // Of few rows, x is rounded to 8 bits in blocks of 32, by up to max|x| / 254 each; of many, where there
      // are tiles, the weights to bf16.
      const double x = reference.max_abs(fmt::format("x{}", i));
      const double w = reference.max_norm(fmt::format("w{}", i), p.in);
      error += std::max(w * std::sqrt(static_cast<double>(p.in)) * x / 254, kBf16 * size);
    }
    switch (p.activation) {
      case Activation::none:
        return {error, p.add ? 2 * kF32 : 0};
      case Activation::tanh:
      case Activation::sigmoid:
        return {error + 4 * kF32, 4 * kF32};
      case Activation::relu_squared:
        return {2 * std::sqrt(reference.max_abs(output)) * error + error * error, 2 * kF32};
    }
    return {};
  }

  /// x of normal values, rounded to 8 bits: 2.1 / 127 / √12 = 0.5% of its size; a square doubles it.
  double norm_bound(const Run& reference, const std::string& output) const override {
    const Product& p = products[static_cast<size_t>(std::stoi(output.substr(1)))];
    if (p.out * rows < 32 && is_quantised(p.weight)) return INFINITY;  // the first bound says it
    if (!is_quantised(p.weight) || precision != Precision::bf16) {
      return OpCase::norm_bound(reference, output);
    }
    return 0.012;
  }
};

/// norm_shift_linear() with `mixes` inputs (0: a norm alone), and products of them.
struct NormLinear final : OpCase {
  struct One {
    size_t input;
    int64_t out;
  };
  int64_t width, mixes;
  std::vector<One> products;
  std::vector<int64_t> offsets;
  DType weight;
  Precision precision;
  NormLinear(int64_t c, int64_t m, std::vector<One> p, std::vector<int64_t> rows, DType w, Precision q)
      : width(c), mixes(m), products(std::move(p)), offsets(std::move(rows)), weight(w), precision(q) {}

  std::string describe() const override {
    std::string text = fmt::format("norm_shift_linear C={} M={} {} offsets {}", width, mixes, name(weight),
                                   fmt::join(offsets, " "));
    for (const One& one : products) text += fmt::format(" {}→{}", one.input, one.out);
    return text;
  }
  static bool adds(size_t product) { return product == 0; }

  void run(Run& run) const override {
    const Shape all{offsets.back(), width};
    const double deviation = 1 / std::sqrt(static_cast<double>(width));
    rwkvx::NormShift norm;
    norm.x = run.input("x", kReal, all, [](Random& random) { return 1 + 2 * random.normal(); });
    norm.gain = run.input("gain", kReal, {width}, [](Random& random) { return 1 + 0.1 * random.normal(); });
    norm.bias = run.input("bias", kReal, {width}, normal(0.1));
    std::vector<void*> last;
    if (mixes > 0) {
      norm.mix = run.input("mix", kReal, {mixes, width}, uniform(0, 1));
      for (size_t s = 0; s + 1 < offsets.size(); ++s) {
        last.push_back(run.inout(fmt::format("last{}", s), kReal, {width}, normal()).data());
      }
    }
    norm.offsets = offsets;
    norm.last = last;
    Buffer normed(run.ops().real(), all, run.ops().allocator());
    norm.normed = normed;
    std::vector<Buffer> rooms;
    for (int64_t m = 0; m < std::max<int64_t>(mixes, 1); ++m) {
      rooms.emplace_back(run.ops().active(), all, run.ops().allocator());
    }
    const std::vector<View> y(rooms.begin(), rooms.end());
    norm.y = y;
    std::vector<Matrix> matrices;
    std::vector<LinearCall> calls;
    for (size_t i = 0; i < products.size(); ++i) {
      matrices.push_back(run.ops().prepare(
          run.input(fmt::format("w{}", i), fixed(weight), {products[i].out, width}, normal(deviation))));
    }
    for (size_t i = 0; i < products.size(); ++i) {
      const Shape shape{offsets.back(), products[i].out};
      const std::string to = fmt::format("y{}", i);
      calls.push_back({.x = y[products[i].input],
                       .w = &matrices[i],
                       .y = adds(i) ? run.inout(to, kReal, shape, normal()) : run.output(to, kReal, shape),
                       .add = adds(i)});
    }
    run.ops().norm_shift_linear(norm, calls);
  }

  /// The norm as norm_shift's: its rows have ‖n‖ ≤ √C · (max|gain| + max|bias|), and so have what lies
  /// between two of them, times √2 in all but odd cases; rounded to bf16 before the product.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double gain = reference.max_abs("gain"), bias = reference.max_abs("bias");
    const double norm = (gain * sum_error(width) * (11 * 0.6 + 6) + 4 * kF32 * (6 * gain + bias)) +
                        3 * kF32 * 3 * (6 * gain + bias);
    if (output.starts_with("last")) return {norm, 0};
    const std::string w = "w" + output.substr(1);
    const double root = std::sqrt(static_cast<double>(width)), length = 2 * root * (gain + bias),
                 weights = reference.max_norm(w, width);
    double error = weights * (norm * root + sum_error(width) * length);
    if (reference.rounds_to_bf16()) error += weights * length * kBf16;
    if (is_quantised(weight) && precision == Precision::bf16) {
      error += std::max(weights * root * 12 / 254, kBf16 * length * weights);
    }
    return {error, adds(static_cast<size_t>(output[1] - '0')) ? 2 * kF32 : 0};
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    if (output.starts_with("last")) return OpCase::norm_bound(reference, output);
    const double bf16 = reference.rounds_to_bf16() ? kBf16 : 0;
    if (is_quantised(weight) && precision == Precision::bf16) return 0.012 + bf16;
    return OpCase::norm_bound(reference, output) + bf16;
  }
};

}  // namespace

Cases norm_shift_linear_cases(Precision precision) {
  Cases cases;
  using One = NormLinear::One;
  const auto add_products = [&](int64_t width, int64_t mixes, std::vector<One> products,
                                std::vector<int64_t> offsets, DType weight) {
    cases.push_back(std::make_unique<NormLinear>(width, mixes, std::move(products), std::move(offsets),
                                                 weight, precision));
  };
  // A product for each input, and one more of the last.
  const auto add = [&](int64_t width, int64_t mixes, int64_t out, std::vector<int64_t> offsets,
                       DType weight) {
    const auto inputs = static_cast<size_t>(std::max<int64_t>(mixes, 1));
    std::vector<One> products;
    for (size_t i = 0; i <= inputs; ++i) {
      products.push_back({std::min(i, inputs - 1), out + 8 * static_cast<int64_t>(i)});
    }
    add_products(width, mixes, std::move(products), std::move(offsets), weight);
  };
  for (const DType weight : {DType::f32, DType::bf16, DType::f16, DType::q8_0, DType::q4_0}) {
    for (const int64_t mixes : {0, 1, 6}) {
      add(64, mixes, 24, {0, 1}, weight);
      add(768, mixes, 96, {0, 1}, weight);
      add(192, mixes, 40, {0, 1, 2, 5}, weight);
    }
  }
  for (const DType weight : {DType::q4_k, DType::q5_k, DType::q6_k}) {
    for (const int64_t mixes : {0, 6}) add(512, mixes, 48, {0, 1}, weight);
  }
  // Many rows: of one sequence, and of several that begin within, and at, blocks of 32 rows.
  for (const DType weight : {DType::bf16, DType::f16, DType::q8_0}) {
    for (const int64_t mixes : {0, 1, 6}) {
      add(128, mixes, 40, {0, 131}, weight);
      add(64, mixes, 24, {0, 1, 2, 40, 64, 96, 160}, weight);
    }
  }
  // So many outputs that blocks go from one product to the next, and take a third of a product.
  add(128, 6, 4600, {0, 1}, DType::bf16);
  add(256, 1, 9000, {0, 1}, DType::bf16);
  // An input that comes again, when blocks have had others in between: once, and twice each with 4
  // multiprocessors.
  add_products(512, 4, {{0, 128}, {1, 256}, {2, 256}, {3, 256}, {1, 256}}, {0, 1}, DType::bf16);
  add(2560, 6, 64, {0, 1}, DType::bf16);
  add(4160, 1, 32, {0, 1}, DType::bf16);
  return cases;
}

Cases linear_cases(Precision precision) {
  Cases cases;
  const auto add = [&](int64_t rows, std::vector<Product> products) {
    cases.push_back(std::make_unique<LinearCase>(rows, std::move(products), precision));
  };
  for (const DType weight : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 8, 9, 17, 33, 64, 129}) {
      add(rows, {{64, 1, weight}});
      add(rows, {{128, 5, weight, kReal, Activation::none, true}});
      add(rows, {{64, 257, weight, kReal, Activation::relu_squared}});
      if (rows < 64) add(rows, {{192, 160, weight, kActive, Activation::relu_squared}});
      // The low-rank pairs: C → rank with an activation, rank → C.
      for (const int64_t rank : {8, 16, 24, 40}) {
        if (rows > 9 && rank != 24) continue;
        add(rows, {{128, rank, weight, kActive, rank == 8 ? Activation::tanh : Activation::sigmoid},
                   {rank, 128, weight}});
      }
    }
    add(1, {{768, 768, weight}});
    add(8, {{768, 257, weight, kReal, Activation::none, true}});
    add(33, {{768, 257, weight, kActive}});
    add(1, {{7, 3, weight}, {33, 66, weight, kActive, Activation::tanh}});
    add(9, {{7, 3, weight}, {33, 66, weight, kActive, Activation::tanh}});
  }
  for (const DType weight : {DType::q8_0, DType::q4_0, DType::q4_k, DType::q5_k, DType::q6_k}) {
    const int64_t block = info(weight).block_elements;
    for (const int64_t rows : {1, 2, 3, 4, 5, 8, 9, 16, 33, 129}) {
      add(rows, {{block, 1, weight}});
      add(rows, {{3 * block, 18, weight, kReal, Activation::none, true}});
      add(rows, {{block, 65, weight, kActive, Activation::relu_squared}});
    }
    add(1, {{768, 257, weight}});
    add(7, {{256, 64, weight, kActive, Activation::tanh}, {256, 130, weight}, {256, 40, DType::bf16}});
  }
  // Several products at once, of different weights and sizes.
  for (const int64_t rows : {1, 6, 20}) {
    add(rows, {{192, 192, DType::bf16},
               {192, 768, DType::f32, kActive, Activation::relu_squared},
               {192, 40, DType::f16, kActive, Activation::tanh},
               {768, 192, DType::bf16, kReal, Activation::none, true},
               {192, 5, DType::bf16, kReal, Activation::sigmoid}});
  }
  // Sparse inputs: of one row, those that are not zero choose what is read.
  for (const DType weight : {DType::f32, DType::bf16, DType::f16, DType::q8_0}) {
    for (const int64_t rows : {1, 2, 3, 4, 7, 8, 9, 40}) {
      add(rows, {{256, 64, weight, kReal, Activation::none, true, 0.67}});  // some rows have few enough
      add(rows, {{768, 192, weight, kReal, Activation::none, true, 0.9}, {192, 130, DType::bf16}});
    }
    add(1, {{3072, 768, weight, kReal, Activation::none, true, 0.5}});
    add(1, {{160, 640, weight, kActive, Activation::tanh, false, 0.7}});
    add(1, {{64, 1088, weight, kReal, Activation::none, true, 1}});
    add(1, {{64, 63, weight, kReal, Activation::none, true, 0.5}});
  }
  add(1, {{33, 128, DType::bf16, kReal, Activation::none, true, 0.01}});
  // Wide enough for blocks of converted weights.
  if (precision == Precision::f32) add(9, {{768, 3000, DType::bf16}, {768, 3000, DType::f16}});
  return cases;
}

}  // namespace rwkvx::test
