#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>
#include <vector>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;
constexpr int64_t kKeyBlock = 64;

/// One query over keys 0 .. count of a page, merged into the running softmax (highest, total, values).
template <typename T>
HWY_INLINE void attend_page(const V* q, const T* keys, const T* values, int64_t count, float& highest,
                            float& total, V* sums) {
  HWY_ALIGN float scores[kKeyBlock];
  for (int64_t begin = 0; begin < count; begin += kKeyBlock) {
    const int64_t block = std::min(kKeyBlock, count - begin);
    for (int64_t i = 0; i < block; ++i) {
      const T* key = keys + (begin + i) * N;
      V dot = hn::Mul(q[0], load(key));
      for (int64_t n = 1; n < kHeadVectors; ++n) dot = hn::MulAdd(q[n], load(key + n * kLanes), dot);
      scores[i] = sum_of_lanes(dot);
    }
    float block_highest = scores[0];
    for (int64_t i = 1; i < block; ++i) block_highest = std::max(block_highest, scores[i]);
    for (int64_t i = block; i < kKeyBlock; ++i) scores[i] = -INFINITY;
    if (block_highest > highest || highest == -INFINITY) {
      const float scale = std::exp(highest - block_highest);
      highest = block_highest;
      total *= scale;
      for (int64_t n = 0; n < kHeadVectors; ++n) sums[n] = hn::Mul(sums[n], set(scale));
    }
    V totals = zero();
    for (int64_t i = 0; i < kKeyBlock; i += kLanes) {
      const V p = exp(hn::Sub(load(scores + i), set(highest)));
      totals = hn::Add(totals, p);
      store(p, scores + i);
    }
    total += sum_of_lanes(totals);
    for (int64_t i = 0; i < block; ++i) {
      const T* value = values + (begin + i) * N;
      const V p = set(scores[i]);
      for (int64_t n = 0; n < kHeadVectors; ++n) sums[n] = hn::MulAdd(p, load(value + n * kLanes), sums[n]);
    }
  }
}

void attend_query(const ChunkAttention& call, const KvChunks& kv, int64_t row, int64_t position, int64_t head,
                  std::vector<std::pair<float, int64_t>>& gates) {
  const int64_t width = call.q.dim(1), B = kv.chunk_size, own = position / B;
  const float* query = call.q.as<float>() + row * width + head * N;
  gates.clear();
  for (int64_t j = 0; j < own; ++j) {
    const float* sums = static_cast<const float*>(kv.key_sums[static_cast<size_t>(j)]) + head * N;
    V dot = zero();
    for (int64_t n = 0; n < N; n += kLanes) dot = hn::MulAdd(load(query + n), load(sums + n), dot);
    gates.emplace_back(-sum_of_lanes(dot), j);
  }
  const auto kept = std::min<size_t>(gates.size(), static_cast<size_t>(call.top_k - 1));
  std::partial_sort(gates.begin(), gates.begin() + static_cast<std::ptrdiff_t>(kept), gates.end());
  gates.resize(kept);
  gates.emplace_back(0.0f, own);

  V q[kHeadVectors], sums[kHeadVectors];
  for (int64_t n = 0; n < kHeadVectors; ++n) {
    q[n] = hn::Mul(load(query + n * kLanes), set(0.125f));  // 1/√N
    sums[n] = zero();
  }
  float highest = -INFINITY, total = 0;
  for (const auto& [gate, chunk] : gates) {
    const int64_t count = chunk == own ? position % B + 1 : B;
    const void* keys = kv.keys[static_cast<size_t>(chunk)];
    const void* values = kv.values[static_cast<size_t>(chunk)];
    with_real_or_bf16(kv.dtype, keys, [&](auto* k) {
      using T = std::remove_pointer_t<decltype(k)>;
      attend_page(q, k + head * B * N, static_cast<T*>(values) + head * B * N, count, highest, total, sums);
    });
  }
  const V scale = set(1.0f / total);
  with_real_or_bf16(call.y.dtype(), call.y.data(), [&](auto* y) {
    for (int64_t n = 0; n < kHeadVectors; ++n) {
      store(hn::Mul(sums[n], scale), y + row * width + head * N + n * kLanes);
    }
  });
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(attend_query);

void attend_query(const ChunkAttention& call, const KvChunks& kv, int64_t row, int64_t position, int64_t head,
                  std::vector<std::pair<float, int64_t>>& gates) {
  HWY_DYNAMIC_DISPATCH(attend_query)(call, kv, row, position, head, gates);
}

}  // namespace rwkvx::cpu
#endif
