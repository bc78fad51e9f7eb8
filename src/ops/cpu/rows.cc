#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rows.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include <algorithm>

#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"
#include "ops/cpu/tiles.h"
#include "tensor/expand_block.h"
#include "tensor/quantise.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

template <typename From, typename To>
HWY_INLINE void convert_typed(const From* from, To* to, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(load(from + i), to + i);
  if (i == count) return;
  From tail[kLanes] = {};
  To rounded[kLanes];
  for (int64_t j = i; j < count; ++j) tail[j - i] = from[j];
  store(load(tail), rounded);
  for (int64_t j = i; j < count; ++j) to[j] = rounded[j - i];
}

void convert(const void* from, DType from_type, void* to, DType to_type, int64_t count) {
  with_real_or_bf16(to_type, to, [&](auto* y) {
    if (from_type == DType::f16) return convert_typed(static_cast<const Float16*>(from), y, count);
    with_real_or_bf16(from_type, from, [&](auto* x) { convert_typed(x, y, count); });
  });
}

template <typename Block, int kElements>
HWY_INLINE void expand_as_bf16(const void* blocks, BFloat16* to, int64_t count) {
  const auto* b = static_cast<const Block*>(blocks);
  for (int64_t i = 0; i < count / kElements; ++i, to += kElements) {
    alignas(64) float values[kElements];
    expand(b[i], values);
    for (int k = 0; k < kElements; k += kLanes) store(load(values + k), to + k);
  }
}

void expand_blocks(const void* blocks, DType type, BFloat16* to, int64_t count) {
  switch (type) {
    case DType::q8_0:
      return expand_as_bf16<BlockQ8_0, kSmallBlock>(blocks, to, count);
    case DType::q4_0:
      return expand_as_bf16<BlockQ4_0, kSmallBlock>(blocks, to, count);
    case DType::q4_k:
      return expand_as_bf16<BlockQ4_K, kSuperBlock>(blocks, to, count);
    case DType::q5_k:
      return expand_as_bf16<BlockQ5_K, kSuperBlock>(blocks, to, count);
    default:
      return expand_as_bf16<BlockQ6_K, kSuperBlock>(blocks, to, count);
  }
}

template <typename Out>
HWY_INLINE void layer_norm_row(const float* row, const float* gain, const float* bias, float eps,
                               int64_t width, Out* to) {
  V sums[4] = {zero(), zero(), zero(), zero()};
  for (int64_t c = 0; c < width; c += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) sums[i] = hn::Add(sums[i], load(row + c + i * kLanes));
  }
  const float mean =
      sum_of_lanes(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))) / static_cast<float>(width);
  const V center = set(mean);
  for (auto& sum : sums) sum = zero();
  for (int64_t c = 0; c < width; c += 4 * kLanes) {
    for (int i = 0; i < 4; ++i) {
      const V d = hn::Sub(load(row + c + i * kLanes), center);
      sums[i] = hn::MulAdd(d, d, sums[i]);
    }
  }
  const float variance =
      sum_of_lanes(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))) / static_cast<float>(width);
  const V scale = set(1.0f / std::sqrt(variance + eps));
  for (int64_t c = 0; c < width; c += kLanes) {
    const V normal = hn::Mul(hn::Sub(load(row + c), center), scale);
    store(hn::MulAdd(normal, load(gain + c), load(bias + c)), to + c);
  }
}

void layer_norm_rows(ConstView x, ConstView gain, ConstView bias, float eps, View y, int64_t begin,
                     int64_t end) {
  const int64_t width = x.dim(1);
  with_real_or_bf16(y.dtype(), y.data(), [&](auto* out) {
    for (int64_t t = begin; t < end; ++t) {
      layer_norm_row(x.as<float>() + t * width, gain.as<float>(), bias.as<float>(), eps, width,
                     out + t * width);
    }
  });
}

template <typename Out>
HWY_INLINE void shift_row(const float* now, const float* before, const float* mix, int64_t width, Out* y) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const V x = load(now + c);
    store(hn::MulAdd(hn::Sub(load(before + c), x), load(mix + c), x), y + c);
  }
}

void token_shift_rows(ConstView x, ConstView mix, const float* before, std::span<const View> y, int64_t begin,
                      int64_t end) {
  const int64_t width = x.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const float* now = x.as<float>() + t * width;
    const float* prev = t == begin ? before : now - width;
    for (size_t m = 0; m < y.size(); ++m) {
      with_real_or_bf16(y[m].dtype(), y[m].data(), [&](auto* out) {
        shift_row(now, prev, mix.as<float>() + static_cast<int64_t>(m) * width, width, out + t * width);
      });
    }
  }
}

void norm_shift_tiles(const NormShift& call, int64_t begin, int64_t end, float* rows,
                      std::span<BFloat16* const> to) {
  const int64_t width = call.x.dim(1), sequences = static_cast<int64_t>(call.offsets.size()) - 1;
  const auto norm = [&](int64_t t, float* y) {
    layer_norm_row(call.x.as<float>() + t * width, call.gain.as<float>(), call.bias.as<float>(), call.eps,
                   width, y);
  };
  const auto row_at = [](int64_t r) { return r / kTileRows * kTileElements + r % kTileRows * kTileDepth; };
  const auto channel_at = [](int64_t c) { return c / kTileDepth * (2 * kTileElements) + c % kTileDepth; };
  float *now = rows, *before = rows + width;
  int64_t s = 0;
  while (s < sequences && call.offsets[static_cast<size_t>(s + 1)] <= begin) ++s;
  if (call.mix && call.offsets[static_cast<size_t>(s)] < begin) norm(begin - 1, before);
  for (int64_t t = begin; t < end; ++t, std::swap(now, before)) {
    norm(t, now);
    const float* previous = before;
    if (call.mix) {
      while (call.offsets[static_cast<size_t>(s + 1)] <= t) ++s;
      if (call.offsets[static_cast<size_t>(s)] == t) {
        previous = static_cast<const float*>(call.last[static_cast<size_t>(s)]);
      }
    }
    const int64_t at = row_at(t - begin);
    for (size_t m = 0; m < to.size(); ++m) {
      const float* mix = call.mix ? call.mix.as<float>() + static_cast<int64_t>(m) * width : nullptr;
      for (int64_t c = 0; c < width; c += kLanes) {
        V x = load(now + c);
        if (mix != nullptr) x = hn::MulAdd(hn::Sub(load(previous + c), x), load(mix + c), x);
        store_plainly(x, to[m] + at + channel_at(c));
      }
    }
  }
  for (int64_t r = end - begin; r < kStripRows; ++r) {
    for (BFloat16* tiles : to) {
      for (int64_t c = 0; c < width; c += kTileDepth) {
        std::fill_n(tiles + row_at(r) + channel_at(c), kTileDepth, BFloat16{});
      }
    }
  }
}

void keep_last_rows(const NormShift& call) {
  const int64_t width = call.x.dim(1);
  for (size_t s = 0; s < call.last.size(); ++s) {
    layer_norm_row(call.x.as<float>() + (call.offsets[s + 1] - 1) * width, call.gain.as<float>(),
                   call.bias.as<float>(), call.eps, width, static_cast<float*>(call.last[s]));
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(convert);
HWY_EXPORT(expand_blocks);
HWY_EXPORT(layer_norm_rows);
HWY_EXPORT(token_shift_rows);
HWY_EXPORT(norm_shift_tiles);
HWY_EXPORT(keep_last_rows);

void convert(const void* from, DType from_type, void* to, DType to_type, int64_t count) {
  if (!is_quantised(from_type)) return HWY_DYNAMIC_DISPATCH(convert)(from, from_type, to, to_type, count);
  if (to_type == DType::f32) return dequantise(from, from_type, static_cast<float*>(to), count);
  HWY_DYNAMIC_DISPATCH(expand_blocks)(from, from_type, static_cast<BFloat16*>(to), count);
}
void embed_rows(std::span<const int32_t> tokens, ConstView table, View y, int64_t begin, int64_t end) {
  const int64_t width = y.dim(1);
  const auto row_bytes = static_cast<int64_t>(bytes_of(table.dtype(), width));
  for (int64_t t = begin; t < end; ++t) {
    const auto* row =
        static_cast<const std::byte*>(table.data()) + tokens[static_cast<size_t>(t)] * row_bytes;
    convert(row, table.dtype(), y.as<float>() + t * width, DType::f32, width);
  }
}
void layer_norm_rows(ConstView x, ConstView gain, ConstView bias, float eps, View y, int64_t begin,
                     int64_t end) {
  HWY_DYNAMIC_DISPATCH(layer_norm_rows)(x, gain, bias, eps, y, begin, end);
}
void token_shift_rows(ConstView x, ConstView mix, const float* before, std::span<const View> y, int64_t begin,
                      int64_t end) {
  HWY_DYNAMIC_DISPATCH(token_shift_rows)(x, mix, before, y, begin, end);
}
void norm_shift_tiles(const NormShift& call, int64_t begin, int64_t end, float* rows,
                      std::span<BFloat16* const> to) {
  HWY_DYNAMIC_DISPATCH(norm_shift_tiles)(call, begin, end, rows, to);
}
void keep_last_rows(const NormShift& call) { HWY_DYNAMIC_DISPATCH(keep_last_rows)(call); }

}  // namespace rwkvx::cpu
#endif
