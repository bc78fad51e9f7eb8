#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "ops/training.h"

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

struct OperandsBackward final : GradientCase {
  int64_t rows, width;
  bool first, reset, aliased, frozen = false;
  std::vector<uint8_t> resets;
  OperandsBackward(int64_t r, int64_t c, bool f, bool s, bool a)
      : rows(r), width(c), first(f), reset(s), aliased(a) {
    for (int64_t t = 0; reset && t < rows; ++t) resets.push_back(t % 3 == 1);
  }
  std::string describe() const override {
    return fmt::format("wkv7_operands_backward R={} C={}{}{}{}{}", rows, width, first ? " first block" : "",
                       reset ? " resets" : "", aliased ? " aliased" : "", frozen ? " frozen" : "");
  }
  bool differentiable() const override { return !aliased; }
  bool adds(const std::string& gradient) const override { return gradient != "dv"; }

  Wkv7Operands run_forward(Run& run) const {
    const Shape all{rows, width}, one{width};
    Wkv7Operands call;
    call.decay = run.input("decay", kReal, all, normal(2));
    call.rate = run.input("rate", kReal, all, normal(2));
    call.w0 = run.input("w0", kReal, one, normal(2));
    call.a0 = run.input("a0", kReal, one, normal());
    call.k_k = run.input("k_k", kReal, one, normal());
    call.k_a = run.input("k_a", kReal, one, normal());
    if (!first) {
      call.value_gate = run.input("value_gate", kReal, all, normal(2));
      call.v_first = run.input("v_first", kReal, all, normal());
      call.v0 = run.input("v0", kReal, one, normal());
    }
    call.k = run.input("k", kReal, all, normal());
    call.v = run.input("v", kReal, all, normal());
    call.w = run.output("w", kReal, all);
    call.k_out = run.output("k_out", kReal, all);
    call.v_out = run.output("v_out", kReal, all);
    call.a = run.output("a", kReal, all);
    call.b = run.output("b", kReal, all);
    call.reset = resets;
    run.ops().wkv7_operands(call);
    return call;
  }
  void forward(Run& run) const override { run_forward(run); }
  void run(Run& run) const override {
    const Shape all{rows, width}, one{width};
    const Wkv7Operands call = run_forward(run);
    Wkv7OperandsGradients g;
    const auto gradient = [&](const char* of_output, const char* of_input, ConstView& from, View& to) {
      if (aliased) {
        to = run.inout(of_output, kReal, all, normal());
        from = to;
      } else {
        from = run.input(of_output, kReal, all, normal());
        to = run.output(of_input, kReal, all);
      }
    };
    gradient("dw", "ddecay", g.dw, g.ddecay);
    gradient("da", "drate", g.da, g.drate);
    gradient("dk_out", "dk", g.dk, g.dk_in);
    gradient("dv_out", "dv", g.dv, g.dv_in);
    if (first) {
      g.db = run.input("db", kReal, all, normal());
      // Zero in the first block's own test: the gradient of v is then all there is.
      View shared = run.output("sent by others", kReal, all);
      run.ops().training().zero(shared);
      g.dv_first = shared;
    } else {
      gradient("db", "dvalue_gate", g.db, g.dvalue_gate);
      g.dv_first = run.inout("dv_first", kReal, all, normal());
    }
    if (!frozen) {
      g.dw0 = run.inout("dw0", kReal, one, normal());
      g.da0 = run.inout("da0", kReal, one, normal());
      g.dk_k = run.inout("dk_k", kReal, one, normal());
      g.dk_a = run.inout("dk_a", kReal, one, normal());
      if (!first) g.dv0 = run.inout("dv0", kReal, one, normal());
    }
    run.ops().training().wkv7_operands_backward(call, g);
  }
  /// Some ten roundings of terms of the size of the gradients (within 6) and inputs; κ divides by a norm of
  /// 64 terms, and its gradient is a sum of 64. Parameters sum R of them.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    if (output == "sent by others") return {};
    const double k = reference.max_abs("k"), k_a = 1 + reference.max_abs("k_a"), sizes = 6 * 6 * k * k_a;
    const double each = (sum_error(N) + 40 * kF32) * sizes;
    if (output.size() == 3 || output == "dk_k" || output == "dk_a") {
      if (output != "dda") return {each * 6 * 8 * std::sqrt(static_cast<double>(rows)), 4 * kF32};
    }
    return {each, 12 * kF32};
  }
  double norm_bound(const Run&, const std::string&) const override { return 64 * kF32; }
};

struct Wkv7Backward final : GradientCase {
  int64_t width;
  std::vector<int64_t> offsets;
  bool with_states, resets;
  Wkv7Backward(int64_t c, std::vector<int64_t> o, bool s, bool r = false)
      : width(c), offsets(std::move(o)), with_states(s), resets(r) {}
  std::string describe() const override {
    return fmt::format("wkv7_backward C={} offsets {}{}{}", width, offsets, with_states ? " states" : "",
                       resets ? " resets" : "");
  }
  bool adds(const std::string& gradient) const override { return !gradient.starts_with("dstate"); }
  bool differentiable() const override { return offsets.back() <= 70; }  // slow

  Wkv7Call inputs(Run& run, std::vector<void*>& states) const {
    const int64_t rows = offsets.back();
    const Shape all{rows, width};
    Wkv7Call call;
    call.r = run.input("r", kReal, all, normal());
    const auto at_reset = [this, i = int64_t{0}](Random&) mutable {
      const int64_t t = i++ / width;
      return resets && t % 11 == 7;
    };
    call.w = run.input("w", kReal, all, [reset = at_reset](Random& random) mutable {
      const double w = 0.5452 + 0.4548 * random.uniform();
      return reset(random) ? 0.0 : w;
    });
    call.k = run.input("k", kReal, all, normal());
    call.v = run.input("v", kReal, all, normal());
    // Of the size that they have in the model: a of length ~ 1, b = −a · η.
    call.a = run.input("a", kReal, all, [reset = at_reset](Random& random) mutable {
      const double a = random.normal() / 8;
      return reset(random) ? 0.0 : a;
    });
    call.b = run.input("b", kReal, all, normal(0.0625));
    call.y = run.output("y", kReal, all);
    call.offsets = offsets;
    const Values start = [this](Random& random) { return with_states ? random.normal() : 0.0; };
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      states.push_back(run.inout(fmt::format("state{}", s), kReal, {width / N, N, N}, start).data());
    }
    call.states = states;
    return call;
  }
  void forward(Run& run) const override {
    std::vector<void*> states;
    run.ops().wkv7(inputs(run, states));
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), width};
    std::vector<void*> states, dstates;
    Wkv7Call call = inputs(run, states);
    call.kept = run.output("kept", kReal, {wkv7_intervals(offsets), width / N, N, N});
    run.ops().wkv7(call);
    Wkv7Gradients g;
    g.dy = run.input("dy", kReal, all, normal());
    for (auto [name, to] : {std::pair{"dr", &g.dr}, {"dk", &g.dk}, {"dv", &g.dv}}) {
      *to = run.inout(name, kReal, all, normal());
    }
    for (auto [name, to] : {std::pair{"dw", &g.dw}, {"da", &g.da}, {"db", &g.db}}) {
      *to = run.output(name, kReal, all);
    }
    for (size_t s = 0; with_states && s + 1 < offsets.size(); ++s) {
      dstates.push_back(run.inout(fmt::format("dstate{}", s), kReal, {width / N, N, N}, normal()).data());
    }
    g.dstates = dstates;
    run.ops().training().wkv7_backward(call, g);
  }
  /// A step lengthens neither the errors of the state nor those of its gradient, so they add up like sums of
  /// 64·T terms of the size of a row; each gradient is a product of the two or of one with an operand.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    double state = 8;
    int64_t longest = 0;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      state = std::max({state, reference.max_norm(fmt::format("state{}", s), N)});
      longest = std::max(longest, offsets[s + 1] - offsets[s]);
    }
    state = std::max(state, reference.max_norm("kept", N));
    const double unit = sum_error(N * (longest + 1)) + (reference.rounds_recurrence(longest) ? 8 * kTf32 : 0);
    if (output == "y" || output == "kept" || output.starts_with("state")) {
      return {unit * state * (output == "y" ? reference.max_norm("r", N) : 1), 0};
    }
    const double dy = reference.max_norm("dy", N), r = reference.max_norm("r", N);
    const double gradient = 8 + dy * r;  // of a row of dstate, some steps long
    return {unit * (gradient * std::max({reference.max_norm("k", N), reference.max_norm("v", N), state}) +
                    dy * state),
            2 * kF32};
  }
  /// Measured with tf32: y and states 4e-4, gradients up to 7e-4, dw, a difference of sums, 1.9e-3.
  double norm_bound(const Run& reference, const std::string& output) const override {
    const bool rounds = reference.rounds_recurrence(offsets.back());
    return rounds ? (output == "dw" ? 8 : 3) * kTf32 : 64 * kF32;
  }
};

struct OutputBackward final : GradientCase {
  int64_t rows, width;
  bool frozen;
  OutputBackward(int64_t r, int64_t c, bool f) : rows(r), width(c), frozen(f) {}
  std::string describe() const override {
    return fmt::format("wkv7_output_backward R={} C={}{}", rows, width, frozen ? " frozen" : "");
  }
  Wkv7Output inputs(Run& run) const {
    const Shape all{rows, width}, one{width};
    Wkv7Output call;
    call.x = run.input("x", kReal, all, normal(3));
    call.r = run.input("r", kReal, all, normal());
    call.k = run.input("k", kReal, all, normal());
    call.v = run.input("v", kReal, all, normal());
    call.g = run.input("g", kReal, all, uniform(0, 2));
    call.r_k = run.input("r_k", kReal, one, normal());
    call.gain = run.input("gain", kReal, one, normal());
    call.bias = run.input("bias", kReal, one, normal());
    call.eps = 64e-5f;
    return call;
  }
  void forward(Run& run) const override {
    Wkv7Output call = inputs(run);
    call.y = run.output("y", kReal, {rows, width});
    run.ops().wkv7_output(call);
  }
  void run(Run& run) const override {
    const Shape all{rows, width}, one{width};
    const Wkv7Output call = inputs(run);
    Wkv7OutputGradients g;
    g.dy = run.input("dy", kReal, all, normal());
    for (auto [name, to] :
         {std::pair{"dx", &g.dx}, {"dr", &g.dr}, {"dk", &g.dk}, {"dv", &g.dv}, {"dg", &g.dg}}) {
      *to = run.output(name, kReal, all);
    }
    if (!frozen) {
      g.dr_k = run.inout("dr_k", kReal, one, normal());
      g.dgain = run.inout("dgain", kReal, one, normal());
      g.dbias = run.inout("dbias", kReal, one, normal());
    }
    run.ops().training().wkv7_output_backward(call, g);
  }
  /// Sums of 64 terms: the bonus and its gradient (of sizes ‖r‖‖k‖·r_k and ‖dy·g‖‖v‖), and the moments.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double r = reference.max_norm("r", N), k = reference.max_norm("k", N),
                 r_k = reference.max_abs("r_k");
    const double v = reference.max_norm("v", N), dy = 2 * reference.max_norm("dy", N);
    const double bonus = r * k * r_k, dbonus = dy * v, gain = reference.max_abs("gain");
    const double unit = sum_error(N) + 12 * kF32;
    if (output == "dx") return {unit * 4 * gain * dy * 6 * 6, 0};
    if (output == "dg") return {unit * 6 * (6 * gain + bonus * 6 + 6), 0};
    if (output == "dv") return {unit * bonus * 12, 0};
    if (output == "dr" || output == "dk") return {unit * dbonus * 6 * r_k, 0};
    return {
        (unit + sum_error(rows)) * std::sqrt(static_cast<double>(rows)) * 8 * std::max(36 * dbonus, 12.0 * 6),
        2 * kF32};
  }
  double norm_bound(const Run&, const std::string&) const override { return 64 * kF32; }
};

}  // namespace

Cases wkv7_operands_backward_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192}) {
    for (const int64_t rows : {1, 3, 33}) {
      for (const bool first : {true, false}) {
        for (const bool aliased : {true, false}) {
          cases.push_back(std::make_unique<OperandsBackward>(rows, width, first, rows == 33, aliased));
        }
      }
    }
  }
  auto frozen = std::make_unique<OperandsBackward>(5, 64, false, false, true);
  frozen->frozen = true;
  cases.push_back(std::move(frozen));
  return cases;
}

Cases wkv7_backward_cases(Precision) {
  Cases cases;
  for (const int64_t rows : {1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 129}) {
    for (auto& offsets : ragged(rows)) {
      if (offsets.size() > 2 && rows % 2 == 0) continue;
      cases.push_back(std::make_unique<Wkv7Backward>(64, std::move(offsets), rows % 3 != 0));
    }
  }
  cases.push_back(std::make_unique<Wkv7Backward>(192, std::vector<int64_t>{0, 40}, true));
  cases.push_back(std::make_unique<Wkv7Backward>(64, std::vector<int64_t>{0, 250}, true));
  cases.push_back(std::make_unique<Wkv7Backward>(64, std::vector<int64_t>{0, 193, 489}, false));
  cases.push_back(std::make_unique<Wkv7Backward>(64, std::vector<int64_t>{0, 70}, true, true));
  cases.push_back(std::make_unique<Wkv7Backward>(128, std::vector<int64_t>{0, 1, 34, 98, 100}, false, true));
  return cases;
}

Cases wkv7_output_backward_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192}) {
    for (const int64_t rows : {1, 2, 33, 129}) {
      cases.push_back(std::make_unique<OutputBackward>(rows, width, rows == 2));
    }
  }
  return cases;
}

}  // namespace rwkvx::test
