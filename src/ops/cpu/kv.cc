#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/kv.cc"
#include "ops/cpu/targets.h"
// After targets.h.
#include "hwy/foreach_target.h"
// After foreach_target.h.
#include "ops/cpu/kernels.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

constexpr int64_t N = kHeadSize;

template <typename T>
HWY_INLINE void append_typed(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv,
                             int64_t head) {
  const int64_t width = k.dim(1);
  for (int64_t t = begin; t < end; ++t) {
    const int64_t position = kv.length - end + t;
    const auto chunk = static_cast<size_t>(position / kv.chunk_size);
    const int64_t slot = position % kv.chunk_size;
    const int64_t at_page = (head * kv.chunk_size + slot) * N;
    const float* key = k.as<float>() + t * width + head * N;
    const float* value = v.as<float>() + t * width + head * N;
    T* stored = static_cast<T*>(kv.keys[chunk]) + at_page;
    T* stored_value = static_cast<T*>(kv.values[chunk]) + at_page;
    float* sums = static_cast<float*>(kv.key_sums[chunk]) + head * N;
    for (int64_t n = 0; n < N; n += kLanes) {
      store(load(key + n), stored + n);
      store(load(value + n), stored_value + n);
      const V as_stored = load(stored + n);
      store(slot == 0 ? as_stored : hn::Add(load(sums + n), as_stored), sums + n);
    }
  }
}

void kv_append_head(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv, int64_t head) {
  if (kv.dtype == DType::bf16) {
    append_typed<BFloat16>(k, v, begin, end, kv, head);
  } else {
    RWKVX_ASSERT(kv.dtype == DType::f32);
    append_typed<float>(k, v, begin, end, kv, head);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace rwkvx::cpu {

HWY_EXPORT(kv_append_head);

void kv_append_head(ConstView k, ConstView v, int64_t begin, int64_t end, const KvChunks& kv, int64_t head) {
  HWY_DYNAMIC_DISPATCH(kv_append_head)(k, v, begin, end, kv, head);
}

}  // namespace rwkvx::cpu
#endif
