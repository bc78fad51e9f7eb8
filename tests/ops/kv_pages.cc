#include "kv_pages.h"

#include <fmt/format.h>

#include <cmath>
#include <numbers>

namespace rwkvx::test {
namespace {

constexpr int64_t N = kHeadSize;

/// `values` in the first `valid` rows of each head, `rest` behind them.
Values limited(Values values, double rest, int64_t chunk_size, int64_t width, int64_t valid) {
  return [=, at = int64_t{0}](Random& random) mutable {
    const int64_t slot = at++ / width % chunk_size;
    return slot < valid ? values(random) : rest;
  };
}

}  // namespace

void KvPages::add(Run& run, const std::string& name, int64_t heads, int64_t begin, bool written,
                  const Values& key_values, const Values& value_values, int64_t valid) {
  const auto tensor = [&](const char* what, Type type, Shape shape, const Values& from, double rest) {
    const auto full = fmt::format("{} {} of {}", what, begin, name);
    const Values now = limited(from, rest, chunk_size, shape.rank() == 3 ? N : 1, valid);
    return written ? run.inout(full, type, shape, now).data()
                   : const_cast<void*>(run.input(full, type, shape, now).data());
  };
  const bool scaled = dtype == DType::i8;
  const Shape rows{heads, chunk_size, N};
  const Values bytes = [](Random& random) { return std::floor(random.uniform() * 255) - 127; };
  keys.push_back(tensor("keys", fixed(dtype), rows, scaled ? bytes : key_values, scaled ? 0 : NAN));
  values.push_back(tensor("values", fixed(dtype), rows, scaled ? bytes : value_values, scaled ? 0 : NAN));
  if (!scaled) return;
  // Powers of two: sums of scaled rows are exact in float32.
  const Values scale = [](Random& random) { return random.uniform() < 0.5 ? 0x1p-7 : 0x1p-6; };
  for (auto* scales : {&key_scales, &value_scales}) {
    const char* what = scales == &key_scales ? "key scales" : "value scales";
    scales->push_back(static_cast<float*>(tensor(what, fixed(DType::f32), {heads, chunk_size}, scale, NAN)));
  }
}

KvPages KvPages::filled(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t length,
                        DType dtype, int64_t part) {
  KvPages pages{{}, {}, {}, {}, {}, {}, chunk_size, dtype, part};
  for (int64_t begin = 0; begin < length; begin += chunk_size) {
    pages.add(run, name, heads, begin, false, normal(), normal(), length - begin);
    pages.sums.push_back(const_cast<void*>(
        run.input(fmt::format("sums {} of {}", begin, name), kReal, {heads, N}, grid(0.5, 8)).data()));
    if (part == 0) continue;
    pages.part_sums.push_back(const_cast<void*>(run.input(fmt::format("part sums {} of {}", begin, name),
                                                          kReal, {heads, chunk_size / part, N}, grid(0.5, 8))
                                                    .data()));
  }
  return pages;
}

KvPages KvPages::changing(Run& run, const std::string& name, int64_t heads, int64_t chunk_size,
                          int64_t length, DType dtype, int64_t part) {
  KvPages pages{{}, {}, {}, {}, {}, {}, chunk_size, dtype, part};
  const Values old = [](Random&) { return 1e30; };
  for (int64_t begin = 0; begin < length; begin += chunk_size) {
    pages.add(run, name, heads, begin, true, grid(0.125, 2), normal(), chunk_size);
    pages.sums.push_back(run.inout(fmt::format("sums {} of {}", begin, name), kReal, {heads, N}, old).data());
    if (part == 0) continue;
    pages.part_sums.push_back(run.inout(fmt::format("sums of parts {} of {}", begin, name), kReal,
                                        {heads, chunk_size / part, N}, old)
                                  .data());
  }
  return pages;
}

KvPages KvPages::empty(Run& run, const std::string& name, int64_t heads, int64_t chunk_size, int64_t capacity,
                       DType dtype, int64_t part) {
  KvPages pages{{}, {}, {}, {}, {}, {}, chunk_size, dtype, part};
  const Values zero = [](Random&) { return 0.0; }, old = [](Random&) { return 1e30; };
  for (int64_t begin = 0; begin < capacity; begin += chunk_size) {
    const auto page = [&](const char* what, Type type, Shape shape, const Values& values) {
      return run.inout(fmt::format("{} {} of {}", what, begin, name), type, shape, values).data();
    };
    pages.keys.push_back(page("keys", fixed(dtype), {heads, chunk_size, N}, zero));
    pages.values.push_back(page("values", fixed(dtype), {heads, chunk_size, N}, zero));
    pages.sums.push_back(page("sums", kReal, {heads, N}, old));  // a reused page: not zeroed
    if (part > 0) pages.part_sums.push_back(page("sums of parts", kReal, {heads, chunk_size / part, N}, old));
    if (dtype != DType::i8) continue;
    for (auto* scales : {&pages.key_scales, &pages.value_scales}) {
      const char* what = scales == &pages.key_scales ? "key scales" : "value scales";
      scales->push_back(static_cast<float*>(page(what, fixed(DType::f32), {heads, chunk_size}, zero)));
    }
  }
  return pages;
}

KvChunks KvPages::at(int64_t length) const {
  const auto chunks = static_cast<size_t>((length + chunk_size - 1) / chunk_size);
  KvChunks kv;
  kv.chunk_size = chunk_size;
  kv.length = length;
  kv.dtype = dtype;
  kv.keys = std::span(keys).first(chunks);
  kv.values = std::span(values).first(chunks);
  kv.key_sums = std::span(sums).first(chunks);
  kv.part = part;
  if (part > 0) kv.part_sums = std::span(part_sums).first(chunks);
  if (dtype == DType::i8) {
    kv.key_scales = std::span(key_scales).first(chunks);
    kv.value_scales = std::span(value_scales).first(chunks);
  }
  return kv;
}

Tolerance attention_tolerance(const Run& run, double q, double k, double v, int64_t keys) {
  const double score = sum_error(N) * q * k / 8 + (run.rounds_attention() ? rounded_score(q, 2) : 0);
  return {v * (2 * score + sum_error(keys) + 8 * kF32 + (run.rounds_attention() ? kBf16 : 0)), 0};
}

double rounded_score(double q, double largest) { return kBf16 / std::numbers::sqrt3 * q * largest; }

}  // namespace rwkvx::test
