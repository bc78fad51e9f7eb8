#include <fmt/ranges.h>

#include <cmath>
#include <list>

#include "cases.h"

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

/// The pages of one sequence as tensors of a run.
struct Store {
  std::vector<void*> keys, values, sums;
  int64_t chunk_size;
  DType dtype;

  /// Filled up to `length` tokens; behind them NaN, which must not be read. Key sums are drawn freely from a
  /// grid: with queries from a grid gates are exact in float32, and many are ties.
  static Store filled(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t length,
                      DType dtype) {
    Store store{{}, {}, {}, chunk_size, dtype};
    for (int64_t begin = 0; begin < length; begin += chunk_size) {
      const auto page = [&](const char* what, const Values& values) {
        const Values valid = [=, at = int64_t{0}](Random& random) mutable {
          const int64_t slot = at++ / N % chunk_size;
          return begin + slot < length ? values(random) : NAN;
        };
        return const_cast<void*>(run.input(fmt::format("{} {} of {}", what, begin, name), fixed(dtype),
                                           {heads, chunk_size, N}, valid)
                                     .data());
      };
      store.keys.push_back(page("keys", normal()));
      store.values.push_back(page("values", normal()));
      store.sums.push_back(const_cast<void*>(
          run.input(fmt::format("sums {} of {}", begin, name), kReal, {heads, N}, grid(0.5, 8)).data()));
    }
    return store;
  }

  /// Room for `capacity` tokens, to be written by kv_append.
  static Store empty(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t capacity,
                     DType dtype) {
    Store store{{}, {}, {}, chunk_size, dtype};
    const Values zero = [](Random&) { return 0.0; }, old = [](Random&) { return 1e30; };
    for (int64_t begin = 0; begin < capacity; begin += chunk_size) {
      const auto page = [&](const char* what, Type type, Shape shape, const Values& values) {
        return run.inout(fmt::format("{} {} of {}", what, begin, name), type, shape, values).data();
      };
      store.keys.push_back(page("keys", fixed(dtype), {heads, chunk_size, N}, zero));
      store.values.push_back(page("values", fixed(dtype), {heads, chunk_size, N}, zero));
      store.sums.push_back(page("sums", kReal, {heads, N}, old));  // a reused page: not zeroed
    }
    return store;
  }

  KvChunks at(int64_t length) const {
    const auto chunks = static_cast<size_t>((length + chunk_size - 1) / chunk_size);
    return {chunk_size,
            length,
            dtype,
            std::span(keys).first(chunks),
            std::span(values).first(chunks),
            std::span(sums).first(chunks)};
  }
};

/// y is a mean of values whose weights are off by twice the error of a score (a sum of 64 terms over √64) and
/// by exp's; summing `keys` of them adds the last term.
Tolerance attention_tolerance(double q, double k, double v, int64_t keys) {
  const double score = sum_error(N) * q * k / 8;
  return {v * (2 * score + sum_error(keys) + 8 * kF32), 0};
}

struct Attention final : OpCase {
  int64_t heads, chunk_size, top_k;
  std::vector<int64_t> offsets, lengths;  // of each sequence
  DType dtype;
  Attention(int64_t h, int64_t b, int64_t k, std::vector<int64_t> o, std::vector<int64_t> l, DType d)
      : heads(h), chunk_size(b), top_k(k), offsets(std::move(o)), lengths(std::move(l)), dtype(d) {}
  std::string describe() const override {
    return fmt::format("chunk_attention H={} B={} top_k={} offsets {} lengths {} {}", heads, chunk_size,
                       top_k, offsets, lengths, name(dtype));
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), heads * N};
    std::list<Store> stores;
    std::vector<KvChunks> kv;
    for (size_t s = 0; s < lengths.size(); ++s) {
      stores.push_back(Store::filled(run, std::to_string(s), heads, chunk_size, lengths[s], dtype));
      kv.push_back(stores.back().at(lengths[s]));
    }
    ChunkAttention call;
    call.q = run.input("q", kReal, all, grid(0.125, 2));
    call.offsets = offsets;
    call.kv = kv;
    call.top_k = top_k;
    call.y = run.output("y", kActive, all);
    run.ops().chunk_attention(call);
  }
  Tolerance tolerance(const Run& reference, const std::string&) const override {
    return attention_tolerance(reference.max_norm("q", N), 14, 6, top_k * chunk_size);
  }
};

/// kv_append of each call, followed by attention or not. The reference gets all tokens in one call.
struct Append final : OpCase {
  int64_t heads, chunk_size, top_k;         // top_k 0: no attention
  std::vector<std::vector<int64_t>> calls;  // rows of each sequence, call by call; 0: not in it
  DType dtype;
  Append(int64_t h, int64_t b, int64_t k, std::vector<std::vector<int64_t>> c, DType d)
      : heads(h), chunk_size(b), top_k(k), calls(std::move(c)), dtype(d) {}
  std::string describe() const override {
    return fmt::format("kv_append H={} B={} top_k={} calls {} {}", heads, chunk_size, top_k, calls,
                       name(dtype));
  }
  void run(Run& run) const override {
    const size_t sequences = calls[0].size();
    std::vector<int64_t> totals(sequences, 0);
    for (const auto& rows : calls) {
      for (size_t s = 0; s < sequences; ++s) totals[s] += rows[s];
    }
    std::vector<Store> stores;
    std::vector<ConstView> q, k, v;
    std::vector<View> y;
    for (size_t s = 0; s < sequences; ++s) {
      const Shape all{totals[s], heads * N};
      const auto named = [&](const char* what) { return fmt::format("{}{}", what, s); };
      stores.push_back(Store::empty(run, named("sequence "), heads, chunk_size, totals[s], dtype));
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
  Tolerance tolerance(const Run&, const std::string& output) const override {
    if (output[0] != 'y') return {};  // copies, and sums that are exact
    return attention_tolerance(16, 16, 6, top_k * chunk_size);
  }

 private:
  void one_call(Run& run, const std::vector<int64_t>& rows, std::vector<int64_t>& lengths,
                const std::vector<Store>& stores, const std::vector<ConstView>& q,
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

}  // namespace

Cases chunk_attention_cases(Precision precision) {
  Cases cases;
  const auto add = [&](int64_t heads, int64_t chunk, int64_t top_k, std::vector<int64_t> offsets,
                       std::vector<int64_t> lengths) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      if (precision == Precision::f32 && dtype == DType::bf16 && lengths[0] > 100) continue;
      cases.push_back(std::make_unique<Attention>(heads, chunk, top_k, offsets, lengths, dtype));
    }
  };
  // One query: the first token, at both sides of a chunk's end, with fewer chunks than top_k, many chunks.
  for (const int64_t length : {1, 15, 16, 17, 33, 200}) add(2, 16, 3, {0, 1}, {length});
  add(1, 64, 4, {0, 1}, {64 * 21 + 5});
  // From the start, and continuing: odd sizes.
  for (const int64_t rows : {2, 3, 7, 8, 9, 17, 33, 64, 129}) {
    add(1, 16, 3, {0, rows}, {rows});
    add(2, 16, 2, {0, rows}, {rows + 41});
  }
  add(1, 128, 3, {0, 300}, {700});
  add(1, 7, 4, {0, 60}, {100});    // a chunk smaller than any block
  add(1, 1, 3, {0, 20}, {50});     // of a single token
  add(2, 16, 1, {0, 40}, {60});    // the own chunk only
  add(2, 16, 50, {0, 40}, {100});  // all there are
  add(3, 16, 3, {0, 1, 2, 40, 47}, {65, 1, 70, 50});
  add(12, 64, 4, {0, 1, 2}, {300, 64});
  return cases;
}

Cases kv_append_cases(Precision) {
  Cases cases;
  for (const DType dtype : {DType::f32, DType::bf16}) {
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
        1, 64, 4, std::vector<std::vector<int64_t>>{{200}, {1}, {55}, {1}, {70}, {1}, {190}}, dtype));
  }
  return cases;
}

}  // namespace rwkvx::test
