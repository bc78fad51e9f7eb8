#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_sparse.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "hwy/cache_control.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_sparse.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t kStep = 32;   // outputs
constexpr int64_t kBlock = 32;  // inputs of a q8_0 block

/// Two vectors of weights of one input: of outputs i … and 16 + i … of a step, i = 0, kLanes, … below 16.
HWY_INLINE void load_pair(const float* step, int64_t i, V& low, V& high) {
  low = load(step + i);
  high = load(step + 16 + i);
}
HWY_INLINE void load_pair(const Float16* step, int64_t i, V& low, V& high) {
  low = load(step + i);
  high = load(step + 16 + i);
}
HWY_INLINE void load_pair(const BFloat16* step, int64_t i, V& low, V& high) {
  const hn::Repartition<uint16_t, F> u16;
  const hn::Repartition<uint32_t, F> u32;
  const auto pairs = hn::BitCast(u32, hn::LoadU(u16, reinterpret_cast<const uint16_t*>(step + 2 * i)));
  low = hn::BitCast(F(), hn::ShiftLeft<16>(pairs));
  high = hn::BitCast(F(), hn::And(pairs, hn::Set(u32, 0xffff0000u)));
}

/// sums += Σ over kInputs inputs, which are added up first: shorter chains, and less rounding.
template <int kInputs, typename T>
HWY_INLINE void add_inputs(const T* weight, int64_t width, const int32_t* indices, const float* values,
                           float* sums) {
  const T* row[kInputs];
  V x[kInputs];
  RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) {
    row[k] = weight + indices[k] * width;
    x[k] = set(values[k]);
  }
  for (int64_t o = 0; o < width; o += kStep) {
    RWKVX_UNROLL for (int64_t i = 0; i < 16; i += kLanes) {
      V low, high;
      load_pair(row[0] + o, i, low, high);
      low = hn::Mul(low, x[0]);
      high = hn::Mul(high, x[0]);
      RWKVX_UNROLL for (int k = 1; k < kInputs; ++k) {
        V l, h;
        load_pair(row[k] + o, i, l, h);
        low = hn::MulAdd(l, x[k], low);
        high = hn::MulAdd(h, x[k], high);
      }
      store(hn::Add(load(sums + o + i), low), sums + o + i);
      store(hn::Add(load(sums + o + 16 + i), high), sums + o + 16 + i);
    }
  }
}

template <typename T>
HWY_INLINE void sum_tile(const InputMajor& w, int64_t t, const NonZero& x, float* sums) {
  constexpr int64_t kInputs = 4;
  const int64_t width = w.width(t), bytes = width * static_cast<int64_t>(sizeof(T));
  const T* weight = reinterpret_cast<const T*>(w.at(t));
  std::fill(sums, sums + width, 0.0f);
  const int64_t ahead = std::max(kInputs, kPrefetchBytes / bytes);
  int64_t n = 0;
  for (; n + kInputs <= x.count; n += kInputs) {
    for (int64_t next = n + ahead; next < std::min(n + ahead + kInputs, x.count); ++next) {
      const auto* row = reinterpret_cast<const std::byte*>(weight + x.indices[next] * width);
      for (int64_t at = 0; at < bytes; at += 64) hwy::Prefetch(row + at);
    }
    add_inputs<kInputs>(weight, width, x.indices + n, x.values + n, sums);
  }
  for (; n < x.count; ++n) add_inputs<1>(weight, width, x.indices + n, x.values + n, sums);
}

/// The same for kInputs inputs of one block.
template <int kInputs>
HWY_INLINE void add_inputs_q8_0(const int8_t* block, int64_t width, const int32_t* indices,
                                const float* values, float* sums) {
  const int8_t* row[kInputs];
  V x[kInputs];
  RWKVX_UNROLL for (int k = 0; k < kInputs; ++k) {
    row[k] = block + indices[k] % kBlock * width;
    x[k] = set(values[k]);
  }
  const auto* scales = reinterpret_cast<const Float16*>(block + kBlock * width);
  for (int64_t o = 0; o < width; o += kLanes) {
    V sum = hn::Mul(load(row[0] + o), x[0]);
    RWKVX_UNROLL for (int k = 1; k < kInputs; ++k) sum = hn::MulAdd(load(row[k] + o), x[k], sum);
    store(hn::MulAdd(sum, load(scales + o), load(sums + o)), sums + o);
  }
}

HWY_INLINE void sum_tile_q8_0(const InputMajor& w, int64_t t, const NonZero& x, float* sums) {
  const int64_t width = w.width(t), block_bytes = (kBlock + 2) * width;
  const auto* tile = reinterpret_cast<const int8_t*>(w.at(t));
  std::fill(sums, sums + width, 0.0f);
  const auto fetch = [](const int8_t* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) hwy::Prefetch(from + at);
  };
  const int64_t ahead = kPrefetchBytes / width;
  int64_t fetched = 0, fetched_block = -1;
  for (int64_t n = 0; n < x.count;) {
    const int64_t b = x.indices[n] / kBlock;
    int count = 1;  // inputs of this block, four at most
    while (count < 4 && n + count < x.count && x.indices[n + count] / kBlock == b) ++count;
    for (; fetched < std::min(n + count + ahead, x.count); ++fetched) {
      const int64_t next = x.indices[fetched], at = next / kBlock;
      fetch(tile + at * block_bytes + next % kBlock * width, width);
      if (at != fetched_block) fetch(tile + at * block_bytes + kBlock * width, 2 * width);
      fetched_block = at;
    }
    const int8_t* block = tile + b * block_bytes;
    const auto add = [&]<int kInputs>() {
      add_inputs_q8_0<kInputs>(block, width, x.indices + n, x.values + n, sums);
    };
    if (count == 4) add.template operator()<4>();
    if (count == 3) add.template operator()<3>();
    if (count == 2) add.template operator()<2>();
    if (count == 1) add.template operator()<1>();
    n += count;
  }
}

void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  switch (w.type) {
    case DType::f32:
      return sum_tile<float>(w, tile, x, sums);
    case DType::bf16:
      return sum_tile<BFloat16>(w, tile, x, sums);
    case DType::f16:
      return sum_tile<Float16>(w, tile, x, sums);
    default:
      return sum_tile_q8_0(w, tile, x, sums);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(sum_inputs);

void sum_inputs(const InputMajor& w, int64_t tile, const NonZero& x, float* sums) {
  HWY_DYNAMIC_DISPATCH(sum_inputs)(w, tile, x, sums);
}

}  // namespace rwkvx::cpu
#endif
