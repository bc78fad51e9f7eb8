#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gate_loss.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/backward_kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

template <typename T>
HWY_INLINE float dot_64(const float* x, const T* y) {
  V sum = zero();
  for (int64_t n = 0; n < N; n += kLanes) sum = hn::MulAdd(load(x + n), load(y + n), sum);
  return sum_of_lanes(sum);
}

/// Running sum of e^(x − highest).
struct Total {
  float highest = -INFINITY, sum = 0;
};

/// Of the keys 0 .. count of a page.
template <typename T>
HWY_INLINE Total page_total(const float* q, const T* keys, int64_t count) {
  constexpr int64_t kBlock = 64;
  HWY_ALIGN float scores[kBlock];
  Total total;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    std::fill(scores, scores + kBlock, -INFINITY);
    for (int64_t i = begin; i < std::min(begin + kBlock, count); ++i) {
      scores[i - begin] = dot_64(q, keys + i * N) * 0.125f;  // 1/√N
    }
    const float highest = std::max(total.highest, *std::max_element(scores, scores + kBlock));
    V sum = zero();
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      sum = hn::Add(sum, exp(hn::Sub(load(scores + i), set(highest))));
    }
    total.sum = total.sum * std::exp(total.highest - highest) + sum_of_lanes(sum);
    total.highest = highest;
  }
  return total;
}

/// masses: [own + 1], of each chunk with the query's own as the last, relative to all.
template <typename T>
HWY_INLINE void chunk_masses(const KvChunks& kv, const float* q, int64_t head, int64_t position,
                             float* masses) {
  const int64_t B = kv.chunk_size, own = position / B;
  float highest = -INFINITY, sum = 0;
  const auto total_of = [&](int64_t j) {
    const T* keys = static_cast<const T*>(kv.keys[static_cast<size_t>(j)]) + head * B * N;
    return page_total(q, keys, j == own ? position % B + 1 : B);
  };
  for (int64_t j = 0; j <= own; ++j) {  // first as logarithms
    const Total total = total_of(j);
    masses[j] = total.highest + std::log(total.sum);
    highest = std::max(highest, masses[j]);
  }
  for (int64_t j = 0; j <= own; ++j) sum += masses[j] = std::exp(masses[j] - highest);
  for (int64_t j = 0; j <= own; ++j) masses[j] /= sum;
}

void gate_loss_query(const ChunkAttention& op, const GateLoss& loss, size_t sequence, int64_t sample,
                     int64_t head, float* dgates) {
  const KvChunks& kv = op.kv[sequence];
  const int64_t width = op.q.dim(1), heads = width / N, t = loss.rows[static_cast<size_t>(sample)];
  const int64_t B = kv.chunk_size, position = t - op.offsets[sequence], own = position / B;
  const int64_t result = sample * heads + head;
  loss.losses.as<float>()[result] = 0;
  loss.hits.as<float>()[result] = -1;
  if (own == 0) return;
  const float* q = op.q.as<float>() + t * width + head * N;
  float* mass = dgates;  // [own + 1]; becomes the gradients
  if (kv.dtype == DType::bf16) {
    chunk_masses<BFloat16>(kv, q, head, position, mass);
  } else {
    RWKVX_ASSERT(kv.dtype == DType::f32);
    chunk_masses<float>(kv, q, head, position, mass);
  }
  const float per_key = 1.0f / static_cast<float>(B);
  const auto sums_of = [&](int64_t j) {
    return static_cast<const float*>(kv.key_sums[static_cast<size_t>(j)]) + head * N;
  };
  // Two passes over the gates, which are cheap beside the masses.
  float highest = -INFINITY, outside = 0, most = -1;
  int64_t first_gate = 0, first_mass = 0;
  Total gates;
  for (int64_t j = 0; j < own; ++j) {
    const float gate = dot_64(q, sums_of(j)) * per_key;
    if (gate > highest) first_gate = j;
    highest = std::max(highest, gate);
    gates.sum = gates.sum * std::exp(gates.highest - highest) + std::exp(gate - highest);
    gates.highest = highest;
    if (mass[j] > most) first_mass = j;
    most = std::max(most, mass[j]);
    outside += mass[j];
  }
  V dq[kHeadVectors];
  for (auto& x : dq) x = zero();
  float cross_entropy = 0;
  const float log_total = std::log(gates.sum);
  for (int64_t j = 0; j < own; ++j) {
    const float log_share = dot_64(q, sums_of(j)) * per_key - highest - log_total;
    cross_entropy -= mass[j] * log_share;
    dgates[j] = loss.scale * per_key * (outside * std::exp(log_share) - mass[j]);
    for (int64_t n = 0; n < kHeadVectors; ++n) {
      dq[n] = hn::MulAdd(set(dgates[j]), load(sums_of(j) + n * kLanes), dq[n]);
    }
  }
  float* to = loss.dq.as<float>() + t * width + head * N;
  for (int64_t n = 0; n < kHeadVectors; ++n) store(hn::Add(load(to + n * kLanes), dq[n]), to + n * kLanes);
  loss.losses.as<float>()[result] = cross_entropy;
  loss.hits.as<float>()[result] = first_gate == first_mass ? 1.0f : 0.0f;
}

void gate_loss_chunk(const ChunkAttention& op, const GateLoss& loss, size_t sequence, int64_t head,
                     int64_t chunk, const float* dgates, int64_t chunks) {
  const int64_t width = op.q.dim(1), heads = width / N, B = op.kv[sequence].chunk_size;
  const int64_t begin = op.offsets[sequence], end = op.offsets[sequence + 1];
  V dk[kHeadVectors];
  for (auto& x : dk) x = zero();
  for (size_t sample = 0; sample < loss.rows.size(); ++sample) {
    const int64_t t = loss.rows[sample];
    if (t < begin + (chunk + 1) * B || t >= end) continue;
    const V dgate = set(dgates[(static_cast<int64_t>(sample) * heads + head) * chunks + chunk]);
    const float* q = op.q.as<float>() + t * width + head * N;
    for (int64_t n = 0; n < kHeadVectors; ++n) dk[n] = hn::MulAdd(dgate, load(q + n * kLanes), dk[n]);
  }
  for (int64_t i = begin + chunk * B; i < begin + (chunk + 1) * B; ++i) {
    float* to = loss.dk.as<float>() + i * width + head * N;
    for (int64_t n = 0; n < kHeadVectors; ++n) store(hn::Add(load(to + n * kLanes), dk[n]), to + n * kLanes);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(gate_loss_query);
HWY_EXPORT(gate_loss_chunk);

void gate_loss_query(const ChunkAttention& forward, const GateLoss& loss, size_t sequence, int64_t sample,
                     int64_t head, float* dgates) {
  HWY_DYNAMIC_DISPATCH(gate_loss_query)(forward, loss, sequence, sample, head, dgates);
}
void gate_loss_chunk(const ChunkAttention& forward, const GateLoss& loss, size_t sequence, int64_t head,
                     int64_t chunk, const float* dgates, int64_t chunks) {
  HWY_DYNAMIC_DISPATCH(gate_loss_chunk)(forward, loss, sequence, head, chunk, dgates, chunks);
}

}  // namespace rwkvx::cpu
#endif
