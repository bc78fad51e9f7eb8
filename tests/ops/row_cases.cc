#include <fmt/ranges.h>

#include <cmath>

#include "cases.h"

namespace rwkvx::test {
namespace {

struct Embed final : OpCase {
  int64_t rows, width;
  DType table;
  Embed(int64_t r, int64_t c, DType t) : rows(r), width(c), table(t) {}
  std::string describe() const override {
    return fmt::format("embed R={} C={} {}", rows, width, name(table));
  }
  void run(Run& run) const override {
    constexpr int64_t kVocabulary = 41;
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < rows; ++i)
      tokens.push_back(static_cast<int32_t>(run.random().next() % kVocabulary));
    const auto weights = run.input("table", fixed(table), {kVocabulary, width}, normal());
    run.ops().embed(tokens, weights, run.output("y", kReal, {rows, width}));
  }
  Tolerance tolerance(const Run&, const std::string&) const override { return {}; }  // exact
};

struct LayerNorm final : OpCase {
  int64_t rows, width;
  Type type;
  bool in_place;
  double offset;  // a mean far from zero cancels
  LayerNorm(int64_t r, int64_t c, Type t, bool p, double o)
      : rows(r), width(c), type(t), in_place(p), offset(o) {}
  std::string describe() const override {
    return fmt::format("layer_norm R={} C={} {} offset {}{}", rows, width,
                       type.kind == Type::Kind::real ? "real" : "active", offset,
                       in_place ? " in place" : "");
  }
  void run(Run& run) const override {
    const Values values = [this](Random& random) { return offset + 2 * random.normal(); };
    const auto gain = run.input("gain", kReal, {width}, normal());
    const auto bias = run.input("bias", kReal, {width}, normal());
    if (in_place) {
      const View x = run.inout("x", kReal, {rows, width}, values);
      run.ops().layer_norm(x, gain, bias, 1e-5f, x);
    } else {
      const auto x = run.input("x", kReal, {rows, width}, values);
      run.ops().layer_norm(x, gain, bias, 1e-5f, run.output("y", type, {rows, width}));
    }
  }
  /// y = n·g + b, n = (x − mean)·scale. The mean is off by sum_error·max|x|, so the deviation is too; the
  /// scale's relative error is half that of the sum of squares. Deviations are ~ 2, scale ~ 1/2, n within ±5.
  Tolerance tolerance(const Run& reference, const std::string&) const override {
    const double gain = reference.max_abs("gain"), bias = reference.max_abs("bias");
    const double largest = std::abs(offset) + 10, n = 6;
    const double n_error = sum_error(width) * (largest * 0.6 + n);
    return {gain * n_error + 4 * kF32 * (gain * n + bias), 0};
  }
};

struct TokenShift final : OpCase {
  int64_t width, mixes;
  std::vector<int64_t> offsets;
  std::vector<int64_t> splits;  // rows of each call for one sequence; empty: one call
  TokenShift(int64_t c, int64_t m, std::vector<int64_t> o, std::vector<int64_t> p = {})
      : width(c), mixes(m), offsets(std::move(o)), splits(std::move(p)) {}
  std::string describe() const override {
    return fmt::format("token_shift C={} M={} offsets {} splits {}", width, mixes, offsets, splits);
  }
  void run(Run& run) const override {
    const auto x = run.input("x", kReal, {offsets.back(), width}, normal());
    const auto mix = run.input("mix", kReal, {mixes, width}, uniform(0, 1));
    std::vector<void*> last;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      last.push_back(run.inout(fmt::format("last{}", s), kReal, {width}, normal()).data());
    }
    std::vector<View> y;
    for (int64_t m = 0; m < mixes; ++m) {
      y.push_back(run.output(fmt::format("y{}", m), kActive, {offsets.back(), width}));
    }
    if (splits.empty() || run.is_reference()) return run.ops().token_shift(x, mix, offsets, last, y);
    int64_t begin = 0;
    for (const int64_t count : splits) {
      std::vector<View> part;
      for (const View& one : y) part.push_back(one.rows(begin, count));
      run.ops().token_shift(x.rows(begin, count), mix, std::vector<int64_t>{0, count}, last, part);
      begin += count;
    }
  }
  /// A copy; or x + (prev − x)·mix, three roundings of terms within |x| and |prev − x|.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    if (output.starts_with("last")) return {};
    return {3 * kF32 * 3 * std::max(reference.max_abs("x"), 4.0), 0};
  }
};

struct NormShift final : OpCase {
  int64_t width, mixes;
  std::vector<int64_t> offsets;
  bool normed_needed;
  NormShift(int64_t c, int64_t m, std::vector<int64_t> o, bool n)
      : width(c), mixes(m), offsets(std::move(o)), normed_needed(n) {}
  std::string describe() const override {
    return fmt::format("norm_shift C={} M={} offsets {}{}", width, mixes, offsets,
                       normed_needed ? " norm needed" : "");
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), width};
    rwkvx::NormShift call;
    call.x = run.input("x", kReal, all, [](Random& random) { return 1 + 2 * random.normal(); });
    call.gain = run.input("gain", kReal, {width}, normal());
    call.bias = run.input("bias", kReal, {width}, normal());
    call.mix = run.input("mix", kReal, {mixes, width}, uniform(0, 1));
    Buffer room;
    if (normed_needed) {
      call.normed = run.output("normed", kReal, all);
    } else {
      room = Buffer(run.ops().real(), all, run.ops().allocator());
      call.normed = room;
    }
    call.normed_needed = normed_needed;
    std::vector<void*> last;
    for (size_t s = 0; s + 1 < offsets.size(); ++s) {
      last.push_back(run.inout(fmt::format("last{}", s), kReal, {width}, normal()).data());
    }
    std::vector<View> y;
    for (int64_t m = 0; m < mixes; ++m) y.push_back(run.output(fmt::format("y{}", m), kActive, all));
    call.offsets = offsets;
    call.last = last;
    call.y = y;
    run.ops().norm_shift(call);
  }
  /// The norm as layer_norm's. y lies between two rows of it, each as far off; three roundings of terms
  /// within |n| and |prev − n| ≤ 2 max|n|.
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    const double gain = reference.max_abs("gain"), bias = reference.max_abs("bias");
    const double n = 6, largest = 11, most = gain * n + bias;
    const double norm = gain * sum_error(width) * (largest * 0.6 + n) + 4 * kF32 * most;
    return {output.starts_with("y") ? norm + 3 * kF32 * 3 * most : norm, 0};
  }
  /// In small tensors a few large products of gain and norm count most, and so do their roundings.
  double norm_bound(const Run& reference, const std::string& output) const override {
    return OpCase::norm_bound(reference, output) +
           (reference.rounds_to_bf16() && output.starts_with("y") ? kBf16 / 8 : 0);
  }
};

struct GatherRows final : OpCase {
  int64_t rows, picked, width;
  Type type;
  GatherRows(int64_t r, int64_t p, int64_t c, Type t) : rows(r), picked(p), width(c), type(t) {}
  std::string describe() const override {
    return fmt::format("gather_rows {} of {} C={}", picked, rows, width);
  }
  void run(Run& run) const override {
    std::vector<int64_t> which;
    for (int64_t i = 0; i < picked; ++i) {
      which.push_back(static_cast<int64_t>(run.random().next() % static_cast<uint64_t>(rows)));
    }
    const auto x = run.input("x", type, {rows, width}, normal());
    run.ops().gather_rows(x, which, run.output("y", type, {picked, width}));
  }
  Tolerance tolerance(const Run&, const std::string&) const override { return {0, 0}; }
};

}  // namespace

Cases embed_cases(Precision) {
  Cases cases;
  for (const DType table : {DType::f32, DType::bf16, DType::f16}) {
    for (const int64_t rows : {1, 7, 129})
      cases.push_back(std::make_unique<Embed>(rows, rows == 1 ? 768 : 64, table));
  }
  return cases;
}

Cases layer_norm_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 128, 192, 768}) {
    for (const int64_t rows : {1, 3, 64, 129}) {
      for (const Type type : {kReal, kActive}) {
        cases.push_back(std::make_unique<LayerNorm>(rows, width, type, false, 0));
      }
    }
  }
  cases.push_back(std::make_unique<LayerNorm>(17, 128, kReal, true, 0));
  cases.push_back(std::make_unique<LayerNorm>(5, 768, kReal, false, 30));
  return cases;
}

Cases token_shift_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192, 768}) {
    for (const int64_t rows : {1, 2, 8, 33, 129}) {
      for (auto& offsets : ragged(rows)) {
        cases.push_back(std::make_unique<TokenShift>(width, rows % 2 == 0 ? 6 : 1, std::move(offsets)));
      }
    }
  }
  cases.push_back(
      std::make_unique<TokenShift>(128, 6, std::vector<int64_t>{0, 70}, std::vector<int64_t>{1, 1, 68}));
  cases.push_back(
      std::make_unique<TokenShift>(64, 1, std::vector<int64_t>{0, 70}, std::vector<int64_t>{40, 1, 29}));
  return cases;
}

Cases norm_shift_cases(Precision) {
  Cases cases;
  for (const int64_t width : {64, 192, 768}) {
    for (const int64_t rows : {1, 2, 8, 33}) {
      for (auto& offsets : ragged(rows)) {
        cases.push_back(
            std::make_unique<NormShift>(width, rows % 2 == 0 ? 6 : 1, std::move(offsets), rows == 8));
      }
    }
  }
  cases.push_back(std::make_unique<NormShift>(2560, 6, std::vector<int64_t>{0, 1}, false));
  cases.push_back(std::make_unique<NormShift>(4160, 1, std::vector<int64_t>{0, 1, 3}, true));
  cases.push_back(std::make_unique<NormShift>(64, 2, std::vector<int64_t>{0, 3, 4}, false));
  std::vector<int64_t> single;  // a row of each of many sequences
  for (int64_t s = 0; s <= 35; ++s) single.push_back(s);
  cases.push_back(std::make_unique<NormShift>(128, 6, single, false));
  // Enough rows for blocks of several, whose limits lie inside sequences, at their ends and before single
  // rows.
  cases.push_back(std::make_unique<NormShift>(64, 1, std::vector<int64_t>{0, 2800}, false));
  cases.push_back(std::make_unique<NormShift>(
      64, 6, std::vector<int64_t>{0, 1, 2, 6, 7, 12, 1000, 1001, 1002, 1004, 2599, 2600}, true));
  return cases;
}

Cases gather_rows_cases(Precision) {
  Cases cases;
  cases.push_back(std::make_unique<GatherRows>(9, 1, 64, kReal));
  cases.push_back(std::make_unique<GatherRows>(129, 17, 768, kReal));
  cases.push_back(std::make_unique<GatherRows>(33, 40, 192, kActive));
  return cases;
}

}  // namespace rwkvx::test
