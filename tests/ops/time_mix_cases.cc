#include <fmt/ranges.h>

#include <cmath>

#include "cases.h"

namespace rwkvx::test {
namespace {

struct Operands final : OpCase {
  int64_t rows, width;
  bool first_block;
  Operands(int64_t r, int64_t c, bool f) : rows(r), width(c), first_block(f) {}
  std::string describe() const override {
    return fmt::format("wkv7_operands R={} C={}{}", rows, width, first_block ? " first block" : "");
  }
  void run(Run& run) const override {
    const Shape all{rows, width}, one{width};
    Wkv7Operands call;
    call.decay = run.input("decay", kReal, all, normal(2));
    call.rate = run.input("rate", kReal, all, normal(2));
    call.w0 = run.input("w0", kReal, one, normal(2));
    call.a0 = run.input("a0", kReal, one, normal());
    call.k_k = run.input("k_k", kReal, one, normal());
    call.k_a = run.input("k_a", kReal, one, normal());
    if (!first_block) {
      call.value_gate = run.input("value_gate", kReal, all, normal(2));
      call.v_first = run.input("v_first", kReal, all, normal());
      call.v0 = run.input("v0", kReal, one, normal());
    }
    // The model lets k_out and v_out alias k and v.
    const View k = run.inout("k", kReal, all, normal()), v = run.inout("v", kReal, all, normal());
    call.k = k;
    call.v = v;
    call.k_out = k;
    call.v_out = v;
    call.w = run.output("w", kReal, all);
    call.a = run.output("a", kReal, all);
    call.b = run.output("b", kReal, all);
    run.ops().wkv7_operands(call);
  }
  /// σ(z) is off by |z|·u/4 from rounding z (|z| ≤ 12) and 4u of its own: 8u. w multiplies that with 0.61·w
  /// and adds 2u for exp. a is k over a norm: half the relative error of 64 squares, and 4 roundings.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double sigma = 8 * kF32, kappa = sum_error(64) / 2 + 4 * kF32;
    if (output == "w") return {0, 0.61 * sigma + 2 * kF32};
    if (output == "a") return {0, kappa};
    if (output == "b") return {sigma, kappa};
    if (output == "k") return {12 * reference.max_abs("k_a") * sigma + 4 * kF32 * reference.max_abs("k"), 0};
    return {12 * sigma + 4 * kF32 * 12, 0};  // v: moves by at most |v_first − v| < 12
  }
};

/// The operands are as in the model: a = −κ of length 1, b = κ·η, w in (0.54, 1).
struct Wkv7 final : OpCase {
  int64_t width;
  std::vector<int64_t> offsets;
  std::vector<int64_t> splits;  // tokens of each call for one sequence; empty: one call
  Wkv7(int64_t c, std::vector<int64_t> o, std::vector<int64_t> p = {})
      : width(c), offsets(std::move(o)), splits(std::move(p)) {}
  std::string describe() const override {
    return fmt::format("wkv7 C={} offsets {} splits {}", width, offsets, splits);
  }
  void run(Run& run) const override {
    const int64_t rows = offsets.back();
    const Shape all{rows, width};
    std::vector<double> kappa, kappa_rate;
    for (int64_t i = 0; i < rows * width; i += kHeadSize) {
      double norm = 0;
      for (int64_t c = 0; c < kHeadSize; ++c) {
        kappa.push_back(run.random().normal());
        norm += kappa.back() * kappa.back();
      }
      for (int64_t c = 0; c < kHeadSize; ++c) {
        double& value = kappa[kappa.size() - static_cast<size_t>(kHeadSize - c)];
        value /= std::sqrt(norm);
        kappa_rate.push_back(value * run.random().uniform());
        value = -value;
      }
    }
    const auto list = [](const std::vector<double>& values) {
      return [&values, i = size_t{0}](Random&) mutable { return values[i++]; };
    };
    Wkv7Call call;
    call.r = run.input("r", kReal, all, normal());
    call.w = run.input("w", kReal, all, uniform(0.5452, 1));
    call.k = run.input("k", kReal, all, normal());
    call.v = run.input("v", kReal, all, normal());
    call.a = run.input("a", kReal, all, list(kappa));
    call.b = run.input("b", kReal, all, list(kappa_rate));
    call.y = run.output("y", kReal, all);
    call.offsets = offsets;
    std::vector<void*> states;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      states.push_back(
          run.inout(fmt::format("state{}", s), kReal, {width / kHeadSize, kHeadSize, kHeadSize}, normal())
              .data());
    }
    call.states = states;
    if (splits.empty() || run.is_reference()) return run.ops().wkv7(call);
    int64_t begin = 0;
    for (const int64_t count : splits) {
      Wkv7Call part = call;
      for (ConstView Wkv7Call::*x :
           {&Wkv7Call::r, &Wkv7Call::w, &Wkv7Call::k, &Wkv7Call::v, &Wkv7Call::a, &Wkv7Call::b}) {
        part.*x = (call.*x).rows(begin, count);
      }
      part.y = call.y.rows(begin, count);
      const std::vector<int64_t> part_offsets{0, count};
      part.offsets = part_offsets;
      run.ops().wkv7(part);
      begin += count;
    }
  }
  /// A step of the state does not lengthen errors (|w| < 1, |a| = 1, |b| < 1), so those of T steps add up
  /// like a sum of 64·T terms of the size of a state's row; y multiplies with r.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    double row = 8;  // the first state's
    int64_t longest = 0;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      row = std::max(row, reference.max_norm(fmt::format("state{}", s), kHeadSize));
      longest = std::max(longest, offsets[s + 1] - offsets[s]);
    }
    const double rounded = reference.rounds_recurrence(longest) ? 8 * kTf32 : 0;
    const double state = (sum_error(kHeadSize * (longest + 1)) + rounded) * row;
    if (output != "y") return {state, 0};
    return {state * reference.max_norm("r", kHeadSize), 0};
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    return reference.rounds_recurrence(offsets.back()) ? 2 * kTf32 : OpCase::norm_bound(reference, output);
  }
};

struct Output final : OpCase {
  int64_t rows, width;
  Output(int64_t r, int64_t c) : rows(r), width(c) {}
  std::string describe() const override { return fmt::format("wkv7_output R={} C={}", rows, width); }
  void run(Run& run) const override {
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
    call.y = run.output("y", kActive, all);
    run.ops().wkv7_output(call);
  }
  /// As layer_norm's with scale ~ 1/3, n within ±6; the bonus is a sum of 64 terms; g < 2.
  Tolerance tolerance(const Run& reference, const std::string&) const override {
    const double gain = reference.max_abs("gain"), bias = reference.max_abs("bias"),
                 v = reference.max_abs("v");
    const double n = 6, n_error = sum_error(64) * (reference.max_abs("x") * 0.5 + n);
    const double terms = reference.max_norm("r", 64) * reference.max_norm("k", 64) * reference.max_abs("r_k");
    return {2 * (gain * n_error + sum_error(64) * terms * v + 6 * kF32 * (gain * n + bias + terms * v)), 0};
  }
};

/// As the model calls it: what is handed on lies where the projections were.
struct Step final : OpCase {
  int64_t width;
  std::vector<int64_t> offsets;
  bool first_block, resets;
  Step(int64_t c, std::vector<int64_t> o, bool f, bool r = false)
      : width(c), offsets(std::move(o)), first_block(f), resets(r) {}
  std::string describe() const override {
    return fmt::format("wkv7_step C={} offsets {}{}{}", width, offsets, first_block ? " first block" : "",
                       resets ? " resets" : "");
  }
  void run(Run& run) const override {
    const int64_t rows = offsets.back();
    const Shape all{rows, width}, one{width};
    std::vector<Buffer> rooms;
    const auto room = [&] {
      rooms.emplace_back(run.ops().real(), all, run.ops().allocator());
      return rooms.back().view();
    };
    const auto copy_of = [&](const char* name) {
      const ConstView values = run.input(name, kReal, all, normal());
      const View copy = room();
      run.ops().copy(values.data(), copy.data(), values.bytes());
      return copy;
    };
    Wkv7Step call;
    Wkv7Operands& in = call.operands;
    in.decay = run.input("decay", kReal, all, normal());
    in.rate = run.input("rate", kReal, all, normal());
    in.w0 = run.input("w0", kReal, one, normal());
    in.a0 = run.input("a0", kReal, one, normal());
    in.k_k = run.input("k_k", kReal, one, normal());
    in.k_a = run.input("k_a", kReal, one, uniform(0, 1));
    const View k = copy_of("k"), v = first_block ? run.inout("v", kReal, all, normal()) : copy_of("v");
    in.k = k;
    in.v = v;
    in.k_out = k;
    in.v_out = v;
    in.v_first = v;
    if (!first_block) {
      in.value_gate = run.input("value_gate", kReal, all, normal());
      in.v_first = run.input("v_first", kReal, all, normal());
      in.v0 = run.input("v0", kReal, one, normal());
    }
    in.w = room();
    in.a = room();
    in.b = room();
    std::vector<uint8_t> reset;
    for (int64_t t = 0; t < rows && resets; ++t) reset.push_back(t % 3 == 1 ? 1 : 0);
    in.reset = reset;
    std::vector<void*> states;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      states.push_back(
          run.inout(fmt::format("state{}", s), kReal, {width / kHeadSize, kHeadSize, kHeadSize}, normal())
              .data());
    }
    const ConstView r = run.input("r", kReal, all, normal());
    const View read = room();
    call.recurrence = {.r = r,
                       .w = in.w,
                       .k = k,
                       .v = v,
                       .a = in.a,
                       .b = in.b,
                       .offsets = offsets,
                       .states = states,
                       .y = read};
    call.output = {.x = read,
                   .r = r,
                   .k = k,
                   .v = v,
                   .g = run.input("g", kReal, all, uniform(0, 2)),
                   .r_k = run.input("r_k", kReal, one, normal()),
                   .gain = run.input("gain", kReal, one, normal()),
                   .bias = run.input("bias", kReal, one, normal()),
                   .y = run.output("y", kActive, all)};
    run.ops().wkv7_step(call);
  }
  /// The three operations', one after another. σ(z), |z| ≤ 7, is off by 7u/4 + 4u: 6u; with it w, k, v, and b
  /// in norm by √64 as much. A row of S is off by that, and by the roundings of its own sums, T steps adding
  /// up as in Wkv7. What r reads has a deviation of 2 or more, so that the norm's scale is ≤ 1/2; n ≤ √63.
  /// Operands rounded to bfloat16 are off by independent errors of a deviation of kBf16 / √3 of theirs.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    if (output == "v") return {};  // the first block's, which later blocks read
    const double sigma = 6 * kF32, kappa = sum_error(64) / 2 + 4 * kF32, n = 8;
    const double k = reference.max_abs("k"), v = 4;
    const double k_error = k * sigma + 4 * kF32 * k, v_error = first_block ? 0 : 8 * sigma + 4 * kF32 * 8;
    const double k_norm = reference.max_norm("k", 64), r_norm = reference.max_norm("r", 64),
                 r_k = reference.max_abs("r_k"), gain = reference.max_abs("gain"),
                 bias = reference.max_abs("bias");
    double row = 14;  // the first state's
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      row = std::max(row, reference.max_norm(fmt::format("state{}", s), kHeadSize));
    }
    const int64_t rows = longest();
    const double given =
        row * (0.61 * sigma + 2 * kF32 + 2 * kappa + 8 * sigma) + v * 8 * k_error + k_norm * v_error;
    const double state = static_cast<double>(rows) * given + sum_error(kHeadSize * (rows + 1)) * row +
                         (reference.rounds_step(rows) ? 2 * kBf16 * row : 0);
    if (output != "y") return {state, 0};
    const double read = state * r_norm, n_error = (2 + n) * read / 2 + 2 * n * sum_error(64);
    const double terms = r_norm * k_norm * r_k,
                 bonus_error = sum_error(64) * terms + r_norm * 8 * k_error * r_k;
    return {
        2 * (gain * n_error + bonus_error * v + terms * v_error + 6 * kF32 * (gain * n + bias + terms * v)),
        0};
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    return output != "v" && reference.rounds_step(longest()) ? kBf16 : OpCase::norm_bound(reference, output);
  }

 private:
  int64_t longest() const {
    int64_t most = 0;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) most = std::max(most, offsets[s + 1] - offsets[s]);
    return most;
  }
};

}  // namespace

Cases wkv7_operands_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 128, 768}) {
    for (const int64_t rows : {1, 3, 33, 129}) {
      for (const bool first : {true, false}) cases.push_back(std::make_unique<Operands>(rows, width, first));
    }
  }
  return cases;
}

Cases wkv7_cases(Precision) {
  Cases cases;
  for (const int64_t rows : {1, 2, 3, 7, 8, 9, 17, 33, 64, 129}) {
    for (auto& offsets : ragged(rows)) {
      cases.push_back(std::make_unique<Wkv7>(rows < 9 ? 192 : 64, std::move(offsets)));
    }
  }
  cases.push_back(std::make_unique<Wkv7>(768, std::vector<int64_t>{0, 1, 2, 3, 5}));
  cases.push_back(std::make_unique<Wkv7>(64, std::vector<int64_t>{0, 700}));
  cases.push_back(std::make_unique<Wkv7>(128, std::vector<int64_t>{0, 192, 460}));
  for (const auto& splits : std::vector<std::vector<int64_t>>{{1, 69}, {7, 63}, {16, 1, 1, 52}, {35, 35}}) {
    cases.push_back(std::make_unique<Wkv7>(128, std::vector<int64_t>{0, 70}, splits));
  }
  return cases;
}

Cases wkv7_step_cases(Precision) {
  Cases cases;
  std::vector<int64_t> single;  // a row of each of many sequences
  for (int64_t s = 0; s <= 35; ++s) single.push_back(s);
  for (const bool first : {true, false}) {
    cases.push_back(std::make_unique<Step>(64, std::vector<int64_t>{0, 1}, first));
    cases.push_back(std::make_unique<Step>(768, std::vector<int64_t>{0, 1}, first));
    cases.push_back(std::make_unique<Step>(192, std::vector<int64_t>{0, 1, 2, 3, 4, 5}, first, true));
    cases.push_back(std::make_unique<Step>(128, std::vector<int64_t>{0, 1, 4, 5}, first, true));
    cases.push_back(std::make_unique<Step>(64, std::vector<int64_t>{0, 40}, first));
    // As many heads as a backend's threads, or more: rows of few and of many at once, whole groups and rests.
    cases.push_back(std::make_unique<Step>(256, std::vector<int64_t>{0, 8, 15, 40}, first));
    cases.push_back(std::make_unique<Step>(256, std::vector<int64_t>{0, 21, 22}, first, true));
    cases.push_back(std::make_unique<Step>(128, std::vector<int64_t>{0, 16, 28, 45, 77}, first));
    cases.push_back(std::make_unique<Step>(128, std::vector<int64_t>{0, 191}, first));
  }
  cases.push_back(std::make_unique<Step>(128, single, false));
  cases.push_back(std::make_unique<Step>(2560, std::vector<int64_t>{0, 1}, false));
  return cases;
}

Cases wkv7_output_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192, 768}) {
    for (const int64_t rows : {1, 2, 17, 129}) cases.push_back(std::make_unique<Output>(rows, width));
  }
  return cases;
}

}  // namespace rwkvx::test
