#pragma once

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "tensor/view.h"

/// From element types known at run time to those of kernels' templates.
namespace rwkvx::cuda {

template <typename T>
T* pointer(const View& view) {
  return static_cast<T*>(view.data());
}
template <typename T>
const T* pointer(const ConstView& view) {
  return static_cast<const T*>(view.data());
}

/// Calls with a float* or a Bf16*.
template <typename Call>
void with_real_or_bf16(const View& view, const Call& call) {
  if (view.dtype() == DType::bf16) return call(pointer<Bf16>(view));
  RWKVX_ASSERT(view.dtype() == DType::f32);
  call(pointer<float>(view));
}
template <typename Call>
void with_real_or_bf16(const ConstView& view, const Call& call) {
  if (view.dtype() == DType::bf16) return call(pointer<Bf16>(view));
  RWKVX_ASSERT(view.dtype() == DType::f32);
  call(pointer<float>(view));
}

}  // namespace rwkvx::cuda
