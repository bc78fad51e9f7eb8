#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention_backward.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/attention_backward.h"
#include "ops/cpu/attention_tiles-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

/// One head of a sequence. Rows are counted from the sequence's first, which is also position 0.
struct HeadGradients {
  const KvChunks& kv;
  int64_t head, heads, rows;
  const float *q, *dy;  // the head's channels of row 0
  const float* lse;     // of row 0
  const int32_t* chosen;
  float *dq, *dk, *dv;
  int64_t slots;  // top_k − 1

  int64_t width() const { return heads * N; }
  template <typename T>
  Rows<T> page(std::span<void* const> pages, int64_t chunk) const {
    return {static_cast<T*>(pages[static_cast<size_t>(chunk)]) + head * kv.chunk_size * N, nullptr};
  }
};

/// 2 vectors of queries, as rows and transposed.
struct GradientBlock {
  HWY_ALIGN float q[kQueries * N], dy[kQueries * N];                  // [query, n], q scaled with 1/√N
  HWY_ALIGN float q_t[N * kQueries], dy_t[N * kQueries];              // [n, query]
  HWY_ALIGN float dq_t[N * kQueries];                                 // √N · dq
  HWY_ALIGN float p[kKeyBlock * kQueries], ds[kKeyBlock * kQueries];  // [key, query]
  HWY_ALIGN float lse[kQueries], delta[kQueries];
  HWY_ALIGN float positions[kQueries];  // in the own chunk, for the causal mask
  int64_t queries;

  /// Those beyond `count` repeat the last: what they give is not used.
  template <typename RowOf>
  void load_queries(const HeadGradients& head, const float* deltas, int64_t count, const RowOf& row_of) {
    queries = count;
    for (int64_t lane = 0; lane < kQueries; ++lane) {
      const int64_t row = row_of(std::min(lane, count - 1));
      RWKVX_UNROLL for (int64_t n = 0; n < N; n += kLanes) {
        const int64_t from = row * head.width() + n;
        store(hn::Mul(load(head.q + from), set(0.125f)), q + lane * N + n);
        store(load(head.dy + from), dy + lane * N + n);
      }
      lse[lane] = head.lse[row * head.heads];
      delta[lane] = deltas[row];
      positions[lane] = static_cast<float>(row % head.kv.chunk_size);
    }
    transpose(q, N, kQueries, N, q_t, kQueries);
    transpose(dy, N, kQueries, N, dy_t, kQueries);
    std::fill(std::begin(dq_t), std::end(dq_t), 0.0f);
  }
  template <typename RowOf>
  void add_dq(const HeadGradients& head, const RowOf& row_of) {
    transpose(dq_t, kQueries, N, kQueries, q, N);
    for (int64_t lane = 0; lane < queries; ++lane) {
      float* to = head.dq + row_of(lane) * head.width();
      for (int64_t n = 0; n < N; n += kLanes) {
        store(hn::MulAdd(load(q + lane * N + n), set(0.125f), load(to + n)), to + n);
      }
    }
  }
};

/// Keys first .. first + count ≤ kKeyBlock of a page (float32 [count, N]) send their parts to dk and dv,
/// whose rows are `width` apart, and to the block's dq. kV: vectors of queries in use.
template <bool kCausal, int kV>
HWY_NOINLINE void attend_block_backward(GradientBlock& block, const float* keys, const float* values,
                                        int64_t first, int64_t count, float* dk, float* dv, int64_t width) {
  V lse[kV], delta[kV], position[kV];
  RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
    lse[v] = load(block.lse + v * kLanes);
    delta[v] = load(block.delta + v * kLanes);
    position[v] = load(block.positions + v * kLanes);
  }
  for (int64_t key = 0; key < count; key += kTile) {
    // The last tile may be short: its rows repeat the last key, and their results are not used.
    const int64_t here = std::min<int64_t>(kTile, count - key);
    int64_t rows[kTile];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) rows[i] = std::min(key + i, count - 1) * N;
    float *p_rows = block.p + key * kQueries, *ds_rows = block.ds + key * kQueries;
    V tile[kTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = zero();
    }
    multiply_tile(
        tile, [&](int i, int64_t n) { return keys[rows[i] + n]; }, block.q_t, N);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) store(tile[i][v], p_rows + i * kQueries + v * kLanes);
    }
    for (int64_t i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        float* at = p_rows + i * kQueries + v * kLanes;
        V p = exp(hn::Sub(load(at), lse[v]));
        if constexpr (kCausal) {
          const auto hidden = hn::Gt(set(static_cast<float>(first + key + i)), position[v]);
          p = hn::IfThenElse(hidden, zero(), p);
        }
        store(p, at);
      }
    }
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) tile[i][v] = hn::Neg(delta[v]);
    }
    multiply_tile(
        tile, [&](int i, int64_t n) { return values[rows[i] + n]; }, block.dy_t, N);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        const int64_t at = i * kQueries + v * kLanes;
        store(hn::Mul(tile[i][v], load(p_rows + at)), ds_rows + at);
      }
    }
    add_rows(p_rows, block.dy, block.queries, here, dv + key * width, width);
    add_rows(ds_rows, block.q, block.queries, here, dk + key * width, width);
  }
  for (int64_t n = 0; n < N; n += kTile) {
    V tile[kTile][kV];
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        tile[i][v] = load(block.dq_t + (n + i) * kQueries + v * kLanes);
      }
    }
    multiply_tile(
        tile, [&](int i, int64_t key) { return keys[key * N + n + i]; }, block.ds, count);
    RWKVX_UNROLL for (int i = 0; i < kTile; ++i) {
      RWKVX_UNROLL for (int v = 0; v < kV; ++v) {
        store(tile[i][v], block.dq_t + (n + i) * kQueries + v * kLanes);
      }
    }
  }
}

/// Keys 0 .. count of a chunk.
template <bool kCausal, typename T>
HWY_NOINLINE void attend_page_backward(const HeadGradients& head, GradientBlock& block, int64_t chunk,
                                       int64_t count) {
  HWY_ALIGN float key_block[kKeyBlock * N], value_block[kKeyBlock * N];
  const auto keys = head.page<T>(head.kv.keys, chunk), values = head.page<T>(head.kv.values, chunk);
  for (int64_t first = 0; first < count; first += kKeyBlock) {
    const int64_t here = std::min(kKeyBlock, count - first);
    const float* key = keys.from(first).widened(here, key_block);
    const float* value = values.from(first).widened(here, value_block);
    const int64_t to = (chunk * head.kv.chunk_size + first) * head.width();
    float *dk = head.dk + to, *dv = head.dv + to;
    if (block.queries <= kLanes) {
      attend_block_backward<kCausal, 1>(block, key, value, first, here, dk, dv, head.width());
    } else {
      attend_block_backward<kCausal, kQueryVectors>(block, key, value, first, here, dk, dv, head.width());
    }
  }
}

/// Sorts rows by the chunks that they chose: counts[c] becomes the end of chunk c's requests.
void sort_requests(const HeadGradients& head, int64_t chunks, int32_t* counts, int32_t* requests) {
  const auto each = [&](const auto& use) {
    for (int64_t row = 0; row < head.rows; ++row) {
      for (int64_t i = 0; i < head.slots; ++i) {
        const int32_t chunk = head.chosen[row * head.heads * head.slots + i];
        if (chunk >= 0) use(row, chunk);
      }
    }
  };
  std::fill(counts, counts + chunks + 1, 0);
  each([&](int64_t, int32_t chunk) { ++counts[chunk + 1]; });
  for (int64_t c = 0; c < chunks; ++c) counts[c + 1] += counts[c];
  each([&](int64_t row, int32_t chunk) { requests[counts[chunk]++] = static_cast<int32_t>(row); });
}

template <typename T>
HWY_NOINLINE void attend_backward_typed(const HeadGradients& head, const float* deltas,
                                        AttentionBackwardScratch& scratch) {
  const int64_t B = head.kv.chunk_size, chunks = (head.rows + B - 1) / B;
  auto* counts = scratch.counts.take<int32_t>(chunks + 1);
  auto* requests = scratch.requests.take<int32_t>(std::max<int64_t>(1, head.rows * head.slots));
  sort_requests(head, chunks, counts, requests);
  GradientBlock block;
  int64_t request = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t end = std::min((chunk + 1) * B, head.rows);
    for (int64_t row = chunk * B; row < end; row += kQueries) {
      const auto row_of = [&](int64_t lane) { return row + lane; };
      const int64_t count = std::min(kQueries, end - row);
      block.load_queries(head, deltas, count, row_of);
      attend_page_backward<true, T>(head, block, chunk, row % B + count);
      block.add_dq(head, row_of);
    }
    for (; request < counts[chunk]; request += kQueries) {
      const auto row_of = [&](int64_t lane) { return int64_t{requests[request + lane]}; };
      block.load_queries(head, deltas, std::min<int64_t>(kQueries, counts[chunk] - request), row_of);
      attend_page_backward<false, T>(head, block, chunk, B);
      block.add_dq(head, row_of);
    }
    request = counts[chunk];
  }
}

void attend_backward(const ChunkAttention& call, const ChunkAttentionGradients& g, size_t sequence,
                     int64_t head, AttentionBackwardScratch& scratch) {
  const int64_t first = call.offsets[sequence], rows = call.offsets[sequence + 1] - first;
  const int64_t width = call.q.dim(1), heads = width / N, at = first * width + head * N;
  const HeadGradients one{call.kv[sequence],
                          head,
                          heads,
                          rows,
                          call.q.as<float>() + at,
                          g.dy.as<float>() + at,
                          call.lse.as<float>() + first * heads + head,
                          call.chosen.as<int32_t>() + (first * heads + head) * (call.top_k - 1),
                          g.dq.as<float>() + at,
                          g.dk.as<float>() + at,
                          g.dv.as<float>() + at,
                          call.top_k - 1};
  RWKVX_ASSERT(one.kv.length == rows);
  auto* deltas = scratch.deltas.take<float>(rows);
  with_real_or_bf16(call.y.dtype(), call.y.data(), [&](const auto* y) {
    for (int64_t row = 0; row < rows; ++row) {
      V sum = zero();
      for (int64_t n = 0; n < N; n += kLanes) {
        sum = hn::MulAdd(load(one.dy + row * width + n), load(y + at + row * width + n), sum);
        for (float* d : {one.dq, one.dk, one.dv}) store(zero(), d + row * width + n);
      }
      deltas[row] = sum_of_lanes(sum);
    }
  });
  if (one.kv.dtype == DType::bf16) {
    attend_backward_typed<const BFloat16>(one, deltas, scratch);
  } else {
    RWKVX_ASSERT(one.kv.dtype == DType::f32);
    attend_backward_typed<const float>(one, deltas, scratch);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(attend_backward);

void attend_backward(const ChunkAttention& call, const ChunkAttentionGradients& gradients, size_t sequence,
                     int64_t head, AttentionBackwardScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(attend_backward)(call, gradients, sequence, head, scratch);
}

}  // namespace rwkvx::cpu
#endif
