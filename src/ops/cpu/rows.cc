#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rows.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"
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

void layer_norm_rows(ConstView x, ConstView gain, ConstView bias, float eps, View y, int64_t begin,
                     int64_t end) {
  const int64_t width = x.dim(1);
  const auto* g = gain.as<float>();
  const auto* b = bias.as<float>();
  with_real_or_bf16(y.dtype(), y.data(), [&](auto* out) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x.as<float>() + t * width;
      V sums[4] = {zero(), zero(), zero(), zero()};
      for (int64_t c = 0; c < width; c += 4 * kLanes) {
        for (int i = 0; i < 4; ++i) sums[i] = hn::Add(sums[i], load(row + c + i * kLanes));
      }
      const float mean = sum_of_lanes(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))) /
                         static_cast<float>(width);
      const V center = set(mean);
      for (auto& sum : sums) sum = zero();
      for (int64_t c = 0; c < width; c += 4 * kLanes) {
        for (int i = 0; i < 4; ++i) {
          const V d = hn::Sub(load(row + c + i * kLanes), center);
          sums[i] = hn::MulAdd(d, d, sums[i]);
        }
      }
      const float variance = sum_of_lanes(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]))) /
                             static_cast<float>(width);
      const V scale = set(1.0f / std::sqrt(variance + eps));
      auto* to = out + t * width;
      for (int64_t c = 0; c < width; c += kLanes) {
        const V normal = hn::Mul(hn::Sub(load(row + c), center), scale);
        store(hn::MulAdd(normal, load(g + c), load(b + c)), to + c);
      }
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

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(convert);
HWY_EXPORT(expand_blocks);
HWY_EXPORT(layer_norm_rows);
HWY_EXPORT(token_shift_rows);

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

}  // namespace rwkvx::cpu
#endif
