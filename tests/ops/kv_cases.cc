#include <fmt/ranges.h>

#include <cmath>
#include <list>

#include "cases.h"
#include "kv_pages.h"

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

/// kv_append of each call, followed by attention or not. The reference gets all tokens in one call.
struct Append final : OpCase {
  int64_t heads, chunk_size, top_k;         // top_k 0: no attention
  std::vector<std::vector<int64_t>> calls;  // rows of each sequence, call by call; 0: not in it
  DType dtype;
  int64_t part;
  Append(int64_t h, int64_t b, int64_t k, std::vector<std::vector<int64_t>> c, DType d, int64_t p = 0)
      : heads(h), chunk_size(b), top_k(k), calls(std::move(c)), dtype(d), part(p) {}
  std::string describe() const override {
    return fmt::format("kv_append H={} B={} top_k={} calls {} {} parts {}", heads, chunk_size, top_k, calls,
                       name(dtype), part);
  }
  void run(Run& run) const override {
    const size_t sequences = calls[0].size();
    std::vector<int64_t> totals(sequences, 0);
    for (const auto& rows : calls) {
      for (size_t s = 0; s < sequences; ++s) totals[s] += rows[s];
    }
    std::vector<KvPages> stores;
    std::vector<ConstView> q, k, v;
    std::vector<View> y;
    for (size_t s = 0; s < sequences; ++s) {
      const Shape all{totals[s], heads * N};
      const auto named = [&](const char* what) { return fmt::format("{}{}", what, s); };
      stores.push_back(KvPages::empty(run, named("sequence "), heads, chunk_size, totals[s], dtype, part));
      // Key sums are exact too, so that both choose the same chunks.
      k.push_back(run.input(named("k"), kReal, all, grid(0.125, 2)));
      v.push_back(run.input(named("v"), kReal, all, normal()));
      if (top_k == 0) continue;
      q.push_back(run.input(named("q"), kReal, all, grid(0.125, 2)));
      y.push_back(run.output(named("y"), kActive, all));
    }
    std::vector<int64_t> lengths(sequences, 0);
    const auto at_once = std::vector<std::vector<int64_t>>(1, totals);
    for (const auto& rows : run.is_reference() ? at_once : calls) {
      one_call(run, rows, lengths, stores, q, k, v, y);
    }
  }
  Tolerance tolerance(const Run& run, const std::string& output) const override {
    if (output[0] == 's' && dtype == DType::i8) return {sum_error(chunk_size) * 2 * std::sqrt(chunk_size), 0};
    if (output[0] != 'y') return {};  // copies, and sums that are exact
    return attention_tolerance(run, 16, 16, 6, top_k * chunk_size);
  }
  double norm_bound(const Run& run, const std::string& output) const override {
    return output[0] == 'y' && run.rounds_attention() ? kBf16 / 2 : OpCase::norm_bound(run, output);
  }

 private:
  void one_call(Run& run, const std::vector<int64_t>& rows, std::vector<int64_t>& lengths,
                const std::vector<KvPages>& stores, const std::vector<ConstView>& q,
                const std::vector<ConstView>& k, const std::vector<ConstView>& v,
                const std::vector<View>& y) const {
    std::vector<int64_t> offsets{0}, which;
    for (size_t s = 0; s < rows.size(); ++s) {
      if (rows[s] == 0) continue;
      which.push_back(static_cast<int64_t>(s));
      offsets.push_back(offsets.back() + rows[s]);
    }
    // The rows of all sequences, one after another.
    const Shape all{offsets.back(), heads * N};
    Buffer all_k(run.ops().real(), all, run.ops().allocator()),
        all_v(run.ops().real(), all, run.ops().allocator());
    Buffer all_q(run.ops().real(), all, run.ops().allocator()),
        all_y(run.ops().active(), all, run.ops().allocator());
    std::vector<KvChunks> kv;
    const auto copy = [&](ConstView from, View to) {
      std::vector<std::byte> bytes(from.bytes());
      run.ops().download(from.data(), bytes);
      run.ops().upload(bytes, to.data());
    };
    for (size_t i = 0; i < which.size(); ++i) {
      const auto s = static_cast<size_t>(which[i]);
      copy(k[s].rows(lengths[s], rows[s]), all_k.view().rows(offsets[i], rows[s]));
      copy(v[s].rows(lengths[s], rows[s]), all_v.view().rows(offsets[i], rows[s]));
      if (top_k > 0) copy(q[s].rows(lengths[s], rows[s]), all_q.view().rows(offsets[i], rows[s]));
      kv.push_back(stores[s].at(lengths[s] + rows[s]));
    }
    run.ops().kv_append(all_k, all_v, offsets, kv);
    if (top_k > 0) {
      run.ops().chunk_attention({all_q, offsets, kv, top_k, all_y});
      for (size_t i = 0; i < which.size(); ++i) {
        const auto s = static_cast<size_t>(which[i]);
        copy(all_y.view().rows(offsets[i], rows[s]), y[s].rows(lengths[s], rows[s]));
      }
    }
    for (size_t s = 0; s < rows.size(); ++s) lengths[s] += rows[s];
  }
};

/// Each head keeps some tokens.
struct Keep final : OpCase {
  int64_t heads, chunk_size, length, kept;
  DType dtype;
  int64_t part;
  Keep(int64_t h, int64_t b, int64_t l, int64_t k, DType d, int64_t p)
      : heads(h), chunk_size(b), length(l), kept(k), dtype(d), part(p) {}
  std::string describe() const override {
    return fmt::format("kv_keep H={} B={} {} of {} {} parts {}", heads, chunk_size, kept, length, name(dtype),
                       part);
  }
  void run(Run& run) const override {
    const KvPages pages = KvPages::changing(run, "kv", heads, chunk_size, length, dtype, part);
    // Of the tokens that are left, so many must still be taken: selection sampling.
    const Values which = [=, this, at = int64_t{0}, next = int64_t{0}](Random& random) mutable {
      if (at % kept == 0) next = 0;
      const int64_t needed = kept - at++ % kept;
      while (random.uniform() * static_cast<double>(length - next) >= static_cast<double>(needed)) ++next;
      return static_cast<double>(next++);
    };
    run.ops().kv_keep(pages.at(length), run.input("kept", fixed(DType::i32), {heads, kept}, which));
  }
  Tolerance tolerance(const Run&, const std::string&) const override { return {}; }
};

struct Vote final : OpCase {
  int64_t heads, chunk_size, first, step, rows, candidates;
  DType dtype;
  Vote(int64_t h, int64_t b, int64_t f, int64_t s, int64_t r, int64_t c, DType d)
      : heads(h), chunk_size(b), first(f), step(s), rows(r), candidates(c), dtype(d) {}
  int64_t tokens() const { return first + rows * step; }
  std::string describe() const override {
    return fmt::format("kv_vote H={} B={} rows {} by {} after {} on {} {}", heads, chunk_size, rows, step,
                       first, candidates, name(dtype));
  }
  void run(Run& run) const override {
    const KvPages pages = KvPages::filled(run, "kv", heads, chunk_size, tokens(), dtype);
    const ConstView q = run.input("q", kReal, {rows, heads * N}, normal());
    const View votes = run.inout("votes", kReal, {heads, candidates}, uniform(0, 2));
    run.ops().kv_vote({q, pages.at(tokens()), first, step, votes});
  }
  /// A weight e^s / Σ is off by twice a score's error and the sum's, and the votes by their own sum's.
  Tolerance tolerance(const Run& reference, const std::string&) const override {
    const double score = sum_error(N) * reference.max_norm("q", N) * 14 / 8;
    const double most = 2 + static_cast<double>(rows);
    return {most * sum_error(rows), 2 * score + sum_error(tokens()) + 8 * kF32};
  }
};

struct Distinct final : OpCase {
  int64_t heads, chunk_size, length, candidates;
  DType dtype;
  Distinct(int64_t h, int64_t b, int64_t l, int64_t c, DType d)
      : heads(h), chunk_size(b), length(l), candidates(c), dtype(d) {}
  std::string describe() const override {
    return fmt::format("kv_distinct H={} B={} {} of {} {}", heads, chunk_size, candidates, length,
                       name(dtype));
  }
  void run(Run& run) const override {
    const KvPages pages = KvPages::filled(run, "kv", heads, chunk_size, length, dtype);
    run.ops().kv_distinct({pages.at(length), run.output("scores", kReal, {heads, candidates})});
  }
  /// Directions that cancel leave a sum of length √candidates or so, and errors of candidates terms.
  Tolerance tolerance(const Run&, const std::string&) const override {
    const double n = static_cast<double>(candidates);
    return {std::sqrt(n) * sum_error(candidates) + 3 * sum_error(N), 0};
  }
};

}  // namespace

Cases kv_append_cases(Precision) {
  Cases cases;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (const int64_t rows : {1, 7, 16, 17, 129}) {
      cases.push_back(std::make_unique<Append>(3, 16, 0, std::vector<std::vector<int64_t>>{{rows}}, dtype));
    }
    cases.push_back(std::make_unique<Append>(
        2, 16, 0, std::vector<std::vector<int64_t>>{{3, 0, 16}, {1, 5, 1}, {1, 40, 15}, {14, 1, 2}}, dtype));
    // Prefill, decode and prefill again, across the ends of chunks.
    cases.push_back(
        std::make_unique<Append>(2, 16, 3,
                                 std::vector<std::vector<int64_t>>{
                                     {31, 1}, {1, 1}, {1, 15}, {60, 1}, {1, 0}, {1, 20}, {2, 64}, {3, 1}},
                                 dtype));
    cases.push_back(std::make_unique<Append>(
        2, 16, 3, std::vector<std::vector<int64_t>>{{31}, {1}, {1}, {60}, {1}, {1}, {2}}, dtype, 4));
    cases.push_back(std::make_unique<Append>(
        1, 64, 4, std::vector<std::vector<int64_t>>{{200}, {1}, {55}, {1}, {70}, {1}, {190}}, dtype));
  }
  return cases;
}

Cases kv_keep_cases(Precision) {
  Cases cases;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (const auto& [length, kept] :
         std::vector<std::pair<int64_t, int64_t>>{{100, 60}, {64, 64}, {33, 1}, {48, 47}}) {
      for (const int64_t part : {0, 8}) {
        cases.push_back(std::make_unique<Keep>(3, 16, length, kept, dtype, part));
      }
    }
  }
  return cases;
}

Cases kv_distinct_cases(Precision) {
  Cases cases;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (const int64_t candidates : {1, 2, 15, 16, 50, 70}) {
      cases.push_back(std::make_unique<Distinct>(3, 16, 70, candidates, dtype));
    }
    cases.push_back(std::make_unique<Distinct>(1, 64, 1500, 1234, dtype));
  }
  return cases;
}

Cases kv_vote_cases(Precision) {
  Cases cases;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    for (const int64_t rows : {1, 7, 32, 33, 100}) {
      cases.push_back(std::make_unique<Vote>(2, 16, 70, 1, rows, 70, dtype));
      cases.push_back(std::make_unique<Vote>(2, 16, 70, 7, rows, 70, dtype));
    }
    cases.push_back(std::make_unique<Vote>(1, 64, 300, 1, 40, 123, dtype));
    cases.push_back(std::make_unique<Vote>(1, 64, 300, 20, 70, 123, dtype));
    cases.push_back(std::make_unique<Vote>(1, 64, 1, 1, 2, 1, dtype));
  }
  return cases;
}

}  // namespace rwkvx::test
