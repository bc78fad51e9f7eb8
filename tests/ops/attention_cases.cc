#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <list>

#include "cases.h"
#include "kv_pages.h"

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

struct Attention final : OpCase {
  int64_t heads, chunk_size, top_k;
  std::vector<int64_t> offsets, lengths;  // of each sequence
  DType dtype;
  int64_t part;
  Attention(int64_t h, int64_t b, int64_t k, std::vector<int64_t> o, std::vector<int64_t> l, DType d,
            int64_t p = 0)
      : heads(h), chunk_size(b), top_k(k), offsets(std::move(o)), lengths(std::move(l)), dtype(d), part(p) {}
  std::string describe() const override {
    return fmt::format("chunk_attention H={} B={} top_k={} offsets {} lengths {} {} parts {}", heads,
                       chunk_size, top_k, offsets, lengths, name(dtype), part);
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), heads * N};
    std::list<KvPages> stores;
    std::vector<KvChunks> kv;
    for (size_t s = 0; s < lengths.size(); ++s) {
      stores.push_back(KvPages::filled(run, std::to_string(s), heads, chunk_size, lengths[s], dtype, part));
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
    return attention_tolerance(reference, reference.max_norm("q", N), 14, 6, top_k * chunk_size);
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    return reference.rounds_attention() ? kBf16 / 2 : OpCase::norm_bound(reference, output);
  }
};

/// Full chunks before the rows are far (KvChunks::far), more in each of several calls, with room near for
/// `near` of each head. Each call has other queries, so that what is near changes on the way.
struct FarAttention final : OpCase {
  int64_t heads, chunk_size, top_k;
  std::vector<int64_t> offsets, lengths;  // of each sequence
  DType dtype;
  int64_t near, part;
  FarAttention(int64_t h, int64_t b, int64_t k, std::vector<int64_t> o, std::vector<int64_t> l, DType d,
               int64_t n, int64_t p)
      : heads(h),
        chunk_size(b),
        top_k(k),
        offsets(std::move(o)),
        lengths(std::move(l)),
        dtype(d),
        near(n),
        part(p) {}
  std::string describe() const override {
    return fmt::format(
        "chunk_attention of far chunks H={} B={} top_k={} offsets {} lengths {} {} near {} parts {}", heads,
        chunk_size, top_k, offsets, lengths, name(dtype), near, part);
  }
  void run(Run& run) const override {
    const Shape all{offsets.back(), heads * N};
    std::list<KvPages> stores;
    std::vector<std::unique_ptr<KvDerived>> derived(lengths.size());
    std::vector<KvChunks> kv;
    for (size_t s = 0; s < lengths.size(); ++s) {
      stores.push_back(KvPages::filled(run, std::to_string(s), heads, chunk_size, lengths[s], dtype, part));
      KvChunks one = stores.back().at(lengths[s]);
      const int64_t scales = dtype == DType::i8 ? 2 * 4 * chunk_size : 0;
      const int64_t slot = 2 * static_cast<int64_t>(bytes_of(dtype, chunk_size * N)) + scales;
      one.near_bytes = static_cast<uint64_t>(near * heads * ((slot + 15) / 16 * 16));
      one.derived = &derived[s];
      kv.push_back(one);
    }
    const int calls = offsets.back() <= 3 ? 16 : 4;
    for (int i = 0; i < calls; ++i) {
      ChunkAttention call;
      call.q = run.input(fmt::format("q{}", i), kReal, all, grid(0.125, 2));
      call.offsets = offsets;
      for (size_t s = 0; s < kv.size(); ++s) {
        const int64_t full = (lengths[s] - (offsets[s + 1] - offsets[s])) / chunk_size;
        kv[s].far = full * std::min(i + 1, 4) / 4;
      }
      call.kv = kv;
      call.top_k = top_k;
      call.y = run.output(fmt::format("y{}", i), kActive, all);
      run.ops().chunk_attention(call);
    }
  }
  Tolerance tolerance(const Run& reference, const std::string& output) const override {
    return attention_tolerance(reference, reference.max_norm("q" + output.substr(1), N), 14, 6,
                               top_k * chunk_size);
  }
  double norm_bound(const Run& reference, const std::string& output) const override {
    return reference.rounds_attention() ? kBf16 / 2 : OpCase::norm_bound(reference, output);
  }
};

}  // namespace

Cases chunk_attention_cases(Precision precision) {
  Cases cases;
  const auto add = [&](int64_t heads, int64_t chunk, int64_t top_k, std::vector<int64_t> offsets,
                       std::vector<int64_t> lengths) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
      if (precision == Precision::f32 && dtype != DType::f32 && lengths[0] > 100) continue;
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
  // Chunks of whole tiles: several blocks of keys, several packings of values (2048), few rows beside many.
  add(1, 32, 3, {0, 129}, {170});
  add(2, 320, 2, {0, 70}, {1000});
  add(1, 2112, 2, {0, 50}, {2112 + 2090});
  add(1, 64, 3, {0, 15, 31, 100}, {70, 280, 260});
  add(1, 7, 4, {0, 60}, {100});    // a chunk smaller than any block
  add(1, 1, 3, {0, 20}, {50});     // of a single token
  add(2, 16, 1, {0, 40}, {60});    // the own chunk only
  add(2, 16, 50, {0, 40}, {100});  // all there are
  add(3, 16, 3, {0, 1, 2, 40, 47}, {65, 1, 70, 50});
  add(2, 16, 3, {0, 60, 61, 130}, {90, 1, 200});  // several sequences, enough rows for the ways of many
  add(12, 64, 4, {0, 1, 2}, {300, 64});
  using Numbers = std::vector<int64_t>;
  for (const DType dtype : {DType::f32, DType::bf16, DType::i8}) {
    const auto far = [&](int64_t heads, int64_t chunk, int64_t top_k, Numbers offsets, Numbers lengths,
                         int64_t near, int64_t part = 0) {
      cases.push_back(
          std::make_unique<FarAttention>(heads, chunk, top_k, offsets, lengths, dtype, near, part));
    };
    // Single rows: no room, too little, just enough, for all; fewer chunks than a row may see.
    for (const int64_t near : {0, 3, 4, 6, 40}) far(2, 16, 3, {0, 1}, {200}, near);
    far(2, 16, 3, {0, 1}, {33}, 40);
    far(2, 16, 3, {0, 1}, {16}, 40);
    far(3, 7, 4, {0, 1, 2, 3}, {100, 5, 61}, 9);
    far(1, 16, 100, {0, 1}, {300}, 40);  // all there are
    far(2, 16, 3, {0, 1}, {200}, 5, 8);
    // Several rows, and a mixture: with room for what all rows see, and without; some heads at a time.
    far(2, 16, 3, {0, 5}, {200}, 20);
    far(4, 64, 2, {0, 20}, {300}, 40);
    far(1, 8, 2, {0, 20}, {20 + 8 * 90}, 64);  // of which they see a small part
    far(2, 16, 3, {0, 5}, {200}, 40);
    far(2, 16, 3, {0, 1, 4, 5}, {200, 80, 40}, 40);
    far(2, 64, 3, {0, 100}, {500}, 40);
    far(3, 64, 3, {0, 60, 61, 190}, {290, 65, 400}, 8);
    far(2, 64, 9, {0, 100}, {400}, 40);
  }
  for (const int64_t part : {1, 4, 8}) {
    for (const int64_t rows : {1, 3, 20, 40}) {
      cases.push_back(std::make_unique<Attention>(2, 16, 3, std::vector<int64_t>{0, rows},
                                                  std::vector<int64_t>{rows + 150}, DType::f32, part));
    }
  }
  return cases;
}

}  // namespace rwkvx::test
