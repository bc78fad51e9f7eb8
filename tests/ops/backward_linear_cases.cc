#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "ops/training.h"

namespace rwkvx::test {
namespace {

struct LinearBackwardCase final : GradientCase {
  int64_t rows, in, out;
  Type weight = kReal;
  Activation activation = Activation::none;
  bool add = false, frozen = false, only_weights = false;

  LinearBackwardCase(int64_t r, int64_t i, int64_t o, Type w = kReal, Activation a = Activation::none)
      : rows(r), in(i), out(o), weight(w), activation(a) {}
  std::string describe() const override {
    return fmt::format("linear_backward R={} {}→{} {} activation {}{}{}{}", rows, in, out,
                       weight.kind == Type::Kind::real ? "real" : name(weight.dtype),
                       static_cast<int>(activation), add ? " add" : "", frozen ? " frozen" : "",
                       only_weights ? " only dw" : "");
  }
  bool differentiable() const override {
    return weight.kind == Type::Kind::real && !(frozen && only_weights);
  }

  struct Operands {
    ConstView x;
    Matrix w;
    View y;
  };
  Operands run_forward(Run& run) const {
    Operands o;
    o.x = run.input("x", kActive, {rows, in}, normal());
    o.w =
        run.ops().prepare(run.input("w", weight, {out, in}, normal(1 / std::sqrt(static_cast<double>(in)))));
    o.y = run.output("y", activation == Activation::none ? kReal : kActive, {rows, out});
    run.ops().linear({.x = o.x, .w = &o.w, .y = o.y, .activation = activation});
    return o;
  }
  void forward(Run& run) const override { run_forward(run); }
  void run(Run& run) const override {
    const Operands o = run_forward(run);
    LinearBackward call;
    call.dy = run.input("dy", kReal, {rows, out}, normal());
    call.x = o.x;
    call.w = &o.w;
    call.activation = activation;
    if (activation != Activation::none) call.y = o.y;
    call.add = add;
    if (!only_weights) {
      call.dx = add ? run.inout("dx", kReal, {rows, in}, normal()) : run.output("dx", kReal, {rows, in});
    }
    if (!frozen) call.dw = run.inout("dw", kReal, {out, in}, normal());
    run.ops().training().linear_backward(call);
  }

  /// du = dy · slope(y): the slope (at most 2, of relu² 2|u|) is off by twice the error of y (of u), and in
  /// bf16 both y and du are rounded. Independent errors of the terms of a sum add up as their norm; λ = 8.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double x = reference.max_norm("x", in), w = reference.max_norm("w", in);
    const double u_error = sum_error(in) * x * w + 4 * kF32;
    const double slope = activation == Activation::relu_squared ? 2 * x * w : 1;
    if (output == "y") {
      if (activation == Activation::relu_squared) {
        return {2 * std::sqrt(reference.max_abs("y")) * u_error + u_error * u_error, 2 * kF32};
      }
      return {u_error, 4 * kF32};
    }
    const double unit = reference.rounds_to_bf16() ? 3 * kBf16 : 8 * kF32;
    const double dy = reference.max_abs("dy");
    const double du_error = dy * ((activation == Activation::none ? 0 : 2 * u_error) + slope * unit);
    const bool is_dx = output == "dx";
    const auto terms = static_cast<double>(is_dx ? out : rows);
    const double other = reference.max_abs(is_dx ? "w" : "x") * std::sqrt(terms);
    return {
        8 * du_error * other + sum_error(static_cast<int64_t>(terms)) * dy * slope * std::sqrt(terms) * other,
        2 * kF32};
  }
  double norm_bound(const Run& reference, const std::string&) const override {
    return reference.rounds_to_bf16() ? 2 * kBf16 : 32 * kF32;
  }
};

/// Products that share an input, as the projections of one block: their dx add up.
struct SharedInput final : OpCase {
  int64_t rows;
  explicit SharedInput(int64_t r) : rows(r) {}
  std::string describe() const override { return fmt::format("linear_backward R={} of one input", rows); }
  void run(Run& run) const override {
    constexpr int64_t kIn = 64;
    const auto x = run.input("x", kActive, {rows, kIn}, normal());
    const View dx = run.output("dx", kReal, {rows, kIn});
    std::vector<Matrix> w;
    std::vector<LinearBackward> calls;
    for (const int64_t out : {64, 24, 130}) {
      w.push_back(run.ops().prepare(run.input(fmt::format("w{}", out), kReal, {out, kIn}, normal(0.125))));
    }
    for (const Matrix& one : w) {
      LinearBackward call;
      call.dy = run.input(fmt::format("dy{}", one.out()), kReal, {rows, one.out()}, normal());
      call.x = x;
      call.w = &one;
      call.dx = dx;
      call.add = !calls.empty();
      call.dw = run.inout(fmt::format("dw{}", one.out()), kReal, {one.out(), kIn}, normal());
      calls.push_back(call);
    }
    run.ops().training().linear_backward(calls);
  }
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double unit = reference.rounds_to_bf16() ? kBf16 : 2 * kF32;
    const auto terms = static_cast<double>(output == "dx" ? 218 : rows);
    const double size = (output == "dx" ? reference.max_abs("w64") : reference.max_abs("x")) * 4;
    return {8 * unit * size * std::sqrt(terms) + sum_error(static_cast<int64_t>(terms)) * size * terms,
            2 * kF32};
  }
  double norm_bound(const Run& reference, const std::string&) const override {
    return reference.rounds_to_bf16() ? kBf16 : 32 * kF32;
  }
};

}  // namespace

Cases linear_backward_cases(Precision) {
  Cases cases;
  const auto add = [&](LinearBackwardCase one) {
    cases.push_back(std::make_unique<LinearBackwardCase>(one));
  };
  for (const int64_t rows : {1, 2, 9, 33, 129}) {
    add({rows, 64, 64});
    add({rows, 128, 24, kReal, Activation::tanh});
    add({rows, 24, 128, fixed(DType::bf16)});
    add({rows, 64, 257, kReal, Activation::relu_squared});
    add({rows, 64, 40, fixed(DType::bf16), Activation::sigmoid});
  }
  add({17, 7, 3, kReal, Activation::sigmoid});
  add({600, 64, 256, fixed(DType::bf16), Activation::relu_squared});
  add({40, 300, 600, fixed(DType::bf16)});
  LinearBackwardCase one(33, 64, 96);
  one.add = true;
  add(one);
  one.frozen = true;
  add(one);
  one.frozen = false;
  one.only_weights = true;
  add(one);
  for (const int64_t rows : {1, 40}) cases.push_back(std::make_unique<SharedInput>(rows));
  return cases;
}

}  // namespace rwkvx::test
