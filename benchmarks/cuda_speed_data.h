#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "model/kv_store.h"
#include "ops/ops.h"
#include "tensor/convert.h"

/// Random numbers, made once and used many times: what is measured needs values that vary, not that all
/// differ.
namespace rwkvx {

/// How many different ones there are: a prime, so that they meet other rows and channels each time.
inline constexpr int64_t kDifferent = 1'048'573;

inline std::span<const float> normal_values() {
  static const std::vector<float> values = [] {
    std::vector<float> all(static_cast<size_t>(kDifferent));
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (float& x : all) x = normal(random);
    return all;
  }();
  return values;
}

/// Fills a backend's memory.
class RandomData {
 public:
  explicit RandomData(Ops& ops) : ops_(ops) {}

  /// Normal numbers of this deviation around `middle`, in a float type. Each call begins elsewhere.
  void fill(View to, float deviation, float middle = 0) { fill_alike(std::span(&to, 1), deviation, middle); }

  /// The same numbers in several types.
  void fill_alike(std::span<const View> to, float deviation, float middle = 0) {
    const std::span<const float> values = normal_values();
    const int64_t elements = to[0].elements(), count = std::min(elements, kDifferent);
    begin_ = (begin_ + 611'953) % kDifferent;
    Buffer block(DType::f32, {count});
    const int64_t until_end = std::min(count, kDifferent - begin_);
    const auto put = [&](int64_t at, std::span<const float> from) {
      for (const float x : from) block.as<float>()[at++] = middle + deviation * x;
    };
    put(0, values.subspan(static_cast<size_t>(begin_), static_cast<size_t>(until_end)));
    put(until_end, values.first(static_cast<size_t>(count - until_end)));
    for (const View& one : to) {
      Buffer rounded(one.dtype(), {count});
      convert(block, rounded);
      ops_.upload(rounded.view().raw(), one.data());
      const View flat = one.reshaped({elements});
      for (int64_t done = count, more = 0; done < elements; done += more) {
        more = std::min(done, elements - done);
        const View piece = flat.rows(done, more);
        ops_.copy(one.data(), piece.data(), piece.bytes());
      }
    }
  }

 private:
  Ops& ops_;
  int64_t begin_ = 0;
};

/// A matrix of normal numbers in the host's memory, in any type that products take; rows repeat.
class HostMatrix {
 public:
  /// Matrices with another `begin` are others.
  HostMatrix(DType type, int64_t out, int64_t in, int64_t begin = 0) : buffer_(type, {out, in}) {
    const float deviation = 1 / std::sqrt(static_cast<float>(in));
    const int64_t different = std::clamp<int64_t>((is_quantised(type) ? 1 << 18 : kDifferent) / in, 1, out);
    const std::span<const float> values = normal_values();
    Buffer block(DType::f32, {different, in});
    for (int64_t i = 0; i < different * in; ++i) {
      block.as<float>()[i] = deviation * values[static_cast<size_t>((begin + i) % kDifferent)];
    }
    convert(block, buffer_.view().rows(0, different));
    for (int64_t done = different; done < out; done += different) {
      const View piece = buffer_.view().rows(done, std::min(different, out - done));
      std::memcpy(piece.data(), buffer_.view().data(), piece.bytes());
    }
  }
  ConstView view() const { return buffer_; }

 private:
  Buffer buffer_;
};

/// Appends `tokens` random keys and values to each store, `piece` rows at a time.
inline void append_random(Ops& ops, RandomData& data, std::span<KvStore> stores, int64_t tokens,
                          int64_t piece) {
  const int64_t C = stores[0].heads() * kHeadSize, rows = std::min(tokens, piece);
  Buffer k(ops.real(), {rows, C}, ops.allocator()), v(ops.real(), {rows, C}, ops.allocator());
  data.fill(k, 1);
  data.fill(v, 1);
  for (KvStore& store : stores) {
    for (int64_t done = 0; done < tokens; done += rows) {
      const int64_t n = std::min(rows, tokens - done);
      store.extend(n);
      const KvChunks kv = store.chunks();
      const std::array<int64_t, 2> offsets{0, n};
      ops.kv_append(k.view().rows(0, n), v.view().rows(0, n), offsets, std::span(&kv, 1));
    }
  }
  ops.synchronize();
}

}  // namespace rwkvx
