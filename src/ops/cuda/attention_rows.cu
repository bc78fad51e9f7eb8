#include "base/assert.h"
#include "ops/cuda/attention_parts.h"

/// Chunk attention of each row and head by itself, for few rows (decoding) and for what the faster kernels do
/// not take: one kernel chooses chunks, another attends to them, cut into pieces for all multiprocessors.
namespace rwkvx::cuda {
namespace {

constexpr int kAttendThreads = 128;
constexpr int kAttendWarps = kAttendThreads / 32;
constexpr int kTokens = 256;         // of a step
constexpr int kPartial = kHead + 4;  // of a split: weighted values, highest score, sum; two unused
constexpr int kMostSplits = 64;
constexpr int kSharedGates = 24 * 1024;

struct Best {
  float gate;
  int32_t chunk;
};

__device__ __forceinline__ Best better(Best a, Best b) {
  return b.gate > a.gate || (b.gate == a.gate && b.chunk < a.chunk) ? b : a;
}

/// One block for each row and head.
__global__ void __launch_bounds__(512)
    choose_kernel(const __grid_constant__ Pieces pieces, Attend a, int32_t* tickets, int64_t first,
                  float* spilled, int32_t most_chunks) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t index = first + blockIdx.x;  // row · H + head
  const int64_t row = index / a.heads;
  const auto head = static_cast<int32_t>(index % a.heads);
  const Piece& piece = piece_of_row(pieces, row);
  const int32_t B = piece.chunk_size();
  const auto own =
      static_cast<int32_t>((piece.position + row - (piece.row - pieces.first_row())) / piece.kv.chunk_size);
  const int32_t seen = chunks_seen(a, piece, own);
  if (threadIdx.x == 0 && tickets != nullptr) tickets[index] = 0;
  if (a.chosen == nullptr) return;
  int32_t* const chosen = a.chosen + index * a.stride;
  if (seen == own) {
    for (int64_t i = threadIdx.x; i < a.stride; i += blockDim.x) {
      chosen[i] = i < own ? static_cast<int32_t>(i) : -1;
    }
    return;
  }

  float* const gates =
      spilled != nullptr ? spilled + static_cast<int64_t>(blockIdx.x) * most_chunks : dynamic_shared<float>();
  const unsigned lane = threadIdx.x % 32;
  const float4 q = load4(a.q + index * kHead + 4 * (lane % 16));
  const int32_t parts = piece.kv.part > 0 ? B / static_cast<int32_t>(piece.kv.part) : 1;
  const auto halves = static_cast<int32_t>(blockDim.x / 16), half = static_cast<int32_t>(threadIdx.x / 16);
  // Whole warps stay together: half-warps of no chunk compute one again.
  for (int32_t base = 0; base < own; base += 8 * halves) {
    float gate[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) gate[u] = -INFINITY;
    for (int32_t part = 0; part < parts; ++part) {
      float4 sums[8];
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        const int32_t chunk = min(base + u * halves + half, own - 1);
        const KvPage& page = piece.kv.pages[chunk];
        const auto* from = static_cast<const float*>(piece.kv.part > 0 ? page.part_sums : page.key_sums);
        sums[u] = load4(from + (static_cast<int64_t>(head) * parts + part) * kHead + 4 * (lane % 16));
      }
#pragma unroll
      for (int u = 0; u < 8; ++u) {
        float product = (q.x * sums[u].x + q.y * sums[u].y) + (q.z * sums[u].z + q.w * sums[u].w);
#pragma unroll
        for (int lanes = 8; lanes > 0; lanes /= 2) product += __shfl_xor_sync(kAllLanes, product, lanes);
        gate[u] = fmaxf(gate[u], product);
      }
    }
#pragma unroll
    for (int u = 0; u < 8; ++u) {
      const int32_t chunk = base + u * halves + half;
      if (lane % 16 == 0 && chunk < own) gates[chunk] = gate[u];
    }
  }

  // The largest, again and again; NaN marks what was taken.
  __shared__ float warp_gates[16];
  __shared__ int32_t warp_chunks[16];
  const auto warps = static_cast<int32_t>(blockDim.x / 32);
  for (int32_t slot = 0; slot < seen; ++slot) {
    __syncthreads();
    Best best{-INFINITY, own};
    for (auto i = static_cast<int32_t>(threadIdx.x); i < own; i += static_cast<int32_t>(blockDim.x)) {
      best = better(best, {gates[i], i});
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const float gate = __shfl_xor_sync(kAllLanes, best.gate, lanes);
      best = better(best, {gate, __shfl_xor_sync(kAllLanes, best.chunk, lanes)});
    }
    if (lane == 0) {
      warp_gates[threadIdx.x / 32] = best.gate;
      warp_chunks[threadIdx.x / 32] = best.chunk;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int32_t w = 1; w < warps; ++w) best = better(best, {warp_gates[w], warp_chunks[w]});
      chosen[slot] = best.chunk;
      gates[best.chunk] = NAN;
    }
  }
  for (int64_t i = seen + static_cast<int64_t>(threadIdx.x); i < a.stride; i += blockDim.x) chosen[i] = -1;
}

/// Rows of keys and values by type: lanes of a row, 16 bytes each.
template <typename T>
struct RowOf;
template <>
struct RowOf<float> {
  static constexpr int kLanes = 16;
  static __device__ __forceinline__ void unpack(uint4 v, float (&x)[4]) {
    x[0] = __uint_as_float(v.x);
    x[1] = __uint_as_float(v.y);
    x[2] = __uint_as_float(v.z);
    x[3] = __uint_as_float(v.w);
  }
};
template <>
struct RowOf<Bf16> {
  static constexpr int kLanes = 8;
  static __device__ __forceinline__ void unpack(uint4 v, float (&x)[8]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = low_bf16(words[i]);
      x[2 * i + 1] = high_bf16(words[i]);
    }
  }
};
template <>
struct RowOf<int8_t> {
  static constexpr int kLanes = 4;
  static __device__ __forceinline__ void unpack(uint4 v, float (&x)[16]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 16; ++i) x[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (i % 4 * 8)));
  }
};

__device__ __forceinline__ void store_y(const Attend& a, int64_t i, float y) {
  if (a.y_bf16) {
    static_cast<Bf16*>(a.y)[i] = from_float<Bf16>(y);
  } else {
    static_cast<float*>(a.y)[i] = y;
  }
}

template <typename T>
__device__ __forceinline__ HeadRows rows_of_head(const Kv& kv, uint32_t chunk, uint32_t head) {
  const KvPage& page = kv.pages[chunk];
  const int64_t at = static_cast<int64_t>(head) * kv.chunk_size;
  HeadRows rows{static_cast<const T*>(page.keys) + at * kHead,
                static_cast<const T*>(page.values) + at * kHead, nullptr, nullptr};
  if (sizeof(T) == 1) rows.key_scales = page.key_scales + at, rows.value_scales = page.value_scales + at;
  return rows;
}

/// Block (row · heads + head, split), of a.some_heads: of the tokens that the row sees, one chunk after
/// another, `share` from split · share on. The last block of a row and head to end adds up the others'.
template <typename T>
__global__ void __launch_bounds__(kAttendThreads)
    attend_kernel(const __grid_constant__ Pieces pieces, Attend a, int64_t first, uint32_t share,
                  float* partials, int32_t* tickets) {
  using Row = RowOf<T>;
  constexpr int kLanes = Row::kLanes, kChannels = kHead / kLanes, kGroups = kAttendThreads / kLanes;
  __shared__ const uint4 *key_rows[kTokens], *value_rows[kTokens];
  __shared__ float scores[kTokens], value_scales[kTokens];
  __shared__ float4 sums4[kAttendWarps][kHead / 4];
  __shared__ float scratch[32];
  __shared__ int32_t last;
  allow_next_kernel();
  wait_for_previous_kernel();
  const auto sums = reinterpret_cast<float(*)[kHead]>(sums4);
  const int64_t item = first + blockIdx.x, row = item / a.some_heads;
  const auto head = static_cast<uint32_t>(a.first_head + item % a.some_heads);
  const int64_t index = row * a.heads + head;
  const Piece& piece = piece_of_row(pieces, row);
  const auto B = static_cast<uint32_t>(piece.kv.chunk_size);
  const auto position = static_cast<uint32_t>(piece.position + row - (piece.row - pieces.first_row()));
  const uint32_t own = position / B;
  const auto seen = static_cast<uint32_t>(chunks_seen(a, piece, static_cast<int32_t>(own)));
  const uint32_t total = seen * B + position % B + 1;
  const uint32_t splits = (total + share - 1) / share;
  if (blockIdx.y >= splits) return;
  const uint32_t begin = blockIdx.y * share, end = min(total, begin + share);

  const unsigned tid = threadIdx.x, warp = tid / 32, lane = tid % kLanes, group = tid / kLanes;
  float q[kChannels], acc[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; c += 4) {
    const float4 v = load4(a.q + index * kHead + lane * kChannels + c);
    q[c] = v.x * kScoreScale;
    q[c + 1] = v.y * kScoreScale;
    q[c + 2] = v.z * kScoreScale;
    q[c + 3] = v.w * kScoreScale;
    acc[c] = acc[c + 1] = acc[c + 2] = acc[c + 3] = 0;
  }
  float highest = -INFINITY, sum = 0;  // sum: this thread's tokens only
  for (uint32_t from = begin; from < end; from += kTokens) {
    const uint32_t count = min(static_cast<uint32_t>(kTokens), end - from);
    __syncthreads();
    for (unsigned i = tid; i < count; i += kAttendThreads) {
      const uint32_t slot = (from + i) / B, token = from + i - slot * B;
      const bool earlier = slot < seen;
      const uint32_t chunk = !earlier      ? own
                             : seen == own ? slot
                                           : static_cast<uint32_t>(a.chosen[index * a.stride + slot]);
      HeadRows rows{};
      if (a.near != nullptr && earlier) rows = a.near[index * a.stride + slot];
      if (rows.keys == nullptr) rows = rows_of_head<T>(piece.kv, chunk, head);
      key_rows[i] = static_cast<const uint4*>(rows.keys) + token * kLanes;
      value_rows[i] = static_cast<const uint4*>(rows.values) + token * kLanes;
      prefetch_l2(value_rows[i]);
      if (kLanes == 16) prefetch_l2(value_rows[i] + 8);
      if (sizeof(T) == 1) {
        scores[i] = rows.key_scales[token];
        value_scales[i] = rows.value_scales[token];
      }
    }
    __syncthreads();
    for (unsigned base = 0; base < count; base += 8 * kGroups) {
      uint4 keys[8];
#pragma unroll
      for (unsigned u = 0; u < 8; ++u) {
        keys[u] = load_once(key_rows[min(base + u * kGroups + group, count - 1)] + lane);
      }
#pragma unroll
      for (unsigned u = 0; u < 8; ++u) {
        float k[kChannels], score = 0;
        Row::unpack(keys[u], k);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) score += q[c] * k[c];
#pragma unroll
        for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) score += __shfl_xor_sync(kAllLanes, score, lanes);
        const unsigned i = base + u * kGroups + group;
        if (lane == 0 && i < count) scores[i] = sizeof(T) == 1 ? score * scores[i] : score;
      }
    }
    __syncthreads();
    float most = highest;
    for (unsigned i = tid; i < count; i += kAttendThreads) most = fmaxf(most, scores[i]);
    most = warp_max(most);
    if (tid % 32 == 0) scratch[warp] = most;
    __syncthreads();
    most = fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3]));
    const float factor = exp2_fast(highest - most);
    highest = most;
    sum *= factor;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) acc[c] *= factor;
    for (unsigned i = tid; i < count; i += kAttendThreads) {
      const float weight = exp2_fast(scores[i] - most);
      sum += weight;
      scores[i] = sizeof(T) == 1 ? weight * value_scales[i] : weight;
    }
    __syncthreads();
    for (unsigned base = 0; base < count; base += 8 * kGroups) {
      uint4 values[8];
#pragma unroll
      for (unsigned u = 0; u < 8; ++u) {
        values[u] = load_once(value_rows[min(base + u * kGroups + group, count - 1)] + lane);
      }
#pragma unroll
      for (unsigned u = 0; u < 8; ++u) {
        const unsigned i = base + u * kGroups + group;
        const float weight = i < count ? scores[i] : 0.0f;
        float v[kChannels];
        Row::unpack(values[u], v);
#pragma unroll
        for (int c = 0; c < kChannels; ++c) acc[c] += weight * v[c];
      }
    }
  }

  sum = block_sum(sum, scratch);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int lanes = kLanes; lanes < 32; lanes *= 2) acc[c] += __shfl_xor_sync(kAllLanes, acc[c], lanes);
    if (tid % 32 < kLanes) sums[warp][lane * kChannels + static_cast<unsigned>(c)] = acc[c];
  }
  __syncthreads();
  float y = 0;
  if (tid < kHead) y = (sums[0][tid] + sums[1][tid]) + (sums[2][tid] + sums[3][tid]);
  if (splits > 1) {
    float* const all = partials + static_cast<int64_t>(blockIdx.x) * gridDim.y * kPartial;
    float* const mine = all + blockIdx.y * kPartial;
    if (tid < kHead) mine[tid] = y;
    if (tid == 0) {
      mine[kHead] = highest;
      mine[kHead + 1] = sum;
    }
    __threadfence();
    __syncthreads();
    if (tid == 0) last = atomicAdd(tickets + index, 1) == static_cast<int32_t>(splits) - 1 ? 1 : 0;
    __syncthreads();
    if (last == 0) return;
    __threadfence();  // what the others wrote before they took their tickets
    const bool one = tid < splits;
    const float its = one ? all[tid * kPartial + kHead] : -INFINITY;
    highest = warp_max(its);
    if (tid % 32 == 0) scratch[warp] = highest;
    __syncthreads();
    highest = fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3]));
    const float factor = one ? exp2_fast(its - highest) : 0.0f;
    scores[tid] = factor;
    sum = block_sum(one ? factor * all[tid * kPartial + kHead + 1] : 0.0f, scratch);
    float4 v = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (uint32_t s = tid / 16; s < splits; s += kAttendThreads / 16) {
      const float4 x = load4(all + s * kPartial + 4 * (tid % 16));
      v = make_float4(v.x + scores[s] * x.x, v.y + scores[s] * x.y, v.z + scores[s] * x.z,
                      v.w + scores[s] * x.w);
    }
    v.x += __shfl_xor_sync(kAllLanes, v.x, 16);
    v.y += __shfl_xor_sync(kAllLanes, v.y, 16);
    v.z += __shfl_xor_sync(kAllLanes, v.z, 16);
    v.w += __shfl_xor_sync(kAllLanes, v.w, 16);
    if (tid % 32 < 16) store4(sums[warp] + 4 * (tid % 16), v);
    __syncthreads();
    if (tid < kHead) y = (sums[0][tid] + sums[1][tid]) + (sums[2][tid] + sums[3][tid]);
  }
  if (tid < kHead) store_y(a, index * kHead + tid, y / sum);
  if (tid == 0 && a.lse != nullptr) a.lse[index] = (highest + log2f(sum)) / kLog2E;
}

}  // namespace

void choose_by_row(Gpu& gpu, const Pieces& pieces, const Attend& a, int32_t* tickets) {
  const int64_t all = pieces.rows() * a.heads;
  int32_t most = 1;
  for (int i = 0; i < pieces.count; ++i) most = std::max(most, pieces.of[i].chunks());
  const unsigned threads = all < 2000 ? 512 : 128;
  if (most <= kSharedGates) {
    const auto bytes = static_cast<size_t>(most) * sizeof(float);
    launch(gpu, {blocks_for(all, 1), threads, bytes}, choose_kernel, pieces, a, tickets, int64_t{0},
           static_cast<float*>(nullptr), most);
    return;
  }
  const Arena::Scope scope(gpu.scratch());
  const int64_t at_once = std::min<int64_t>(all, 256);
  float* const gates = gpu.scratch().take(DType::f32, {at_once, most}).as<float>();
  for (int64_t first = 0; first < all; first += at_once) {
    launch(gpu, {blocks_for(std::min(at_once, all - first), 1), threads}, choose_kernel, pieces, a, tickets,
           first, gates, most);
  }
}

AttendByRow::AttendByRow(Gpu& gpu, const Pieces& pieces, const Attend& a, DType kv)
    : gpu_(gpu), pieces_(pieces), kv_(kv), all_(pieces.rows() * a.heads) {
  int64_t most = 1;  // tokens that a row sees
  for (int i = 0; i < pieces.count; ++i) {
    const Piece& piece = pieces.of[i];
    const int64_t own = piece.chunks() - 1;
    const int64_t seen = piece.dense != 0 ? own : std::min<int64_t>(own, a.top);
    most = std::max(most, std::min((seen + 1) * piece.kv.chunk_size, piece.position + piece.rows));
  }
  // Some sixteen blocks for each multiprocessor, of whole steps.
  const int64_t wanted = most * all_ / (16 * gpu.multiprocessors());
  share_ = std::max<int64_t>({wanted, most / kMostSplits, 1}) / kTokens * kTokens + kTokens;
  splits_ = (most + share_ - 1) / share_;
  tickets_ = gpu.scratch().take(DType::i32, {all_}).as<int32_t>();
}

void AttendByRow::choose(const Attend& a) const {
  choose_by_row(gpu_, pieces_, a, splits_ > 1 ? tickets_ : nullptr);
}

void AttendByRow::attend(const Attend& of, const Pieces& pieces) const {
  Attend a = of;
  if (a.some_heads == 0) a.some_heads = a.heads;
  const int64_t all = pieces.rows() * a.some_heads;
  const int64_t at_once =
      splits_ == 1 ? all : std::min<int64_t>(all, std::max<int64_t>(1, (1 << 20) / splits_));
  float* const partials =
      splits_ == 1 ? nullptr : gpu_.scratch().take(DType::f32, {at_once, splits_, kPartial}).as<float>();
  for (int64_t first = 0; first < all; first += at_once) {
    const dim3 blocks(blocks_for(std::min(at_once, all - first), 1), static_cast<unsigned>(splits_));
    const auto run = [&](auto* kernel) {
      launch(gpu_, {blocks, kAttendThreads}, kernel, pieces, a, first, static_cast<uint32_t>(share_),
             partials, tickets_);
    };
    if (kv_ == DType::f32) {
      run(attend_kernel<float>);
    } else if (kv_ == DType::bf16) {
      run(attend_kernel<Bf16>);
    } else {
      RWKVX_ASSERT(kv_ == DType::i8);
      run(attend_kernel<int8_t>);
    }
  }
}

}  // namespace rwkvx::cuda
