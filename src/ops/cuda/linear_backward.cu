#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/types.h"

namespace rwkvx::cuda {
namespace {

/// activation′ from the activation's value.
__device__ __forceinline__ float slope(Activation activation, float y) {
  switch (activation) {
    case Activation::tanh:
      return 1.0f - y * y;
    case Activation::sigmoid:
      return y * (1.0f - y);
    case Activation::relu_squared:
      return 2.0f * sqrtf(y);
    default:
      return 1.0f;
  }
}

/// y is null without an activation.
template <typename Y, typename Du>
__global__ void slope_kernel(const float* dy, const Y* y, Activation activation, int64_t count, Du* du) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i + 4 <= count) {
    float4 d = load4(dy + i);
    if (y != nullptr) {
      const float4 v = load4(y + i);
      d = make_float4(d.x * slope(activation, v.x), d.y * slope(activation, v.y),
                      d.z * slope(activation, v.z), d.w * slope(activation, v.w));
    }
    store4(du + i, d);
    return;
  }
  for (int64_t k = i; k < count; ++k) {
    du[k] = from_float<Du>(dy[k] * (y != nullptr ? slope(activation, to_float(y[k])) : 1.0f));
  }
}

/// dy ⊙ activation′ in the type of the products.
const void* slopes(Gpu& gpu, const LinearBackward& call, DType type) {
  if (call.activation == Activation::none && type == DType::f32) return call.dy.data();
  const View du = gpu.scratch().take(type, call.dy.shape());
  const ConstView y = call.activation == Activation::none ? call.dy : call.y;
  const int64_t count = du.elements();
  with_real_or_bf16(y, [&](const auto* values) {
    using Y = std::remove_const_t<std::remove_pointer_t<decltype(values)>>;
    const Y* used = call.activation == Activation::none ? nullptr : values;
    with_real_or_bf16(du, [&](auto* to) {
      launch(gpu, {blocks_for(count, 1024), 256}, slope_kernel<Y, std::remove_pointer_t<decltype(to)>>,
             call.dy.as<float>(), used, call.activation, count, to);
    });
  });
  return du.data();
}

const void* in_type(Gpu& gpu, ConstView x, DType type) {
  if (x.dtype() == type) return x.data();
  RWKVX_ASSERT(x.dtype() == DType::bf16 && type == DType::f32);
  const View to = gpu.scratch().take(type, x.shape());
  GpuMatrix rows;
  rows.type = x.dtype();
  rows.out = x.dim(0);
  rows.in = x.dim(1);
  rows.body = x.data();
  expand_matrix(gpu, rows, type, 0, to.data());
  return to.data();
}

void one_backward(Gpu& gpu, const LinearBackward& call) {
  const Arena::Scope scope(gpu.scratch());
  const GpuMatrix& w = gpu_matrix(*call.w);
  const bool both = call.x.dtype() == DType::bf16 && w.type == DType::bf16;
  const DType type = both ? DType::bf16 : DType::f32;
  const int64_t rows = call.dy.dim(0);
  const void* du = slopes(gpu, call, type);
  if (call.dx) {
    const void* weights = w.body;
    if (w.type != type) {
      const View expanded = gpu.scratch().take(type, {w.out, w.in});
      expand_matrix(gpu, w, type, 0, expanded.data());
      weights = expanded.data();
    }
    multiply(gpu, {.m = rows,
                   .n = w.in,
                   .k = w.out,
                   .a = du,
                   .b = weights,
                   .type = type,
                   .b_transposed = w.input_major,
                   .d = call.dx.data(),
                   .d_type = DType::f32,
                   .add = call.add});
  }
  if (call.dw) {
    multiply(gpu, {.m = w.out,
                   .n = w.in,
                   .k = rows,
                   .a = du,
                   .b = in_type(gpu, call.x, type),
                   .type = type,
                   .a_transposed = true,
                   .d = call.dw.data(),
                   .d_type = DType::f32,
                   .add = true});
  }
}

}  // namespace

void linear_backward(Gpu& gpu, std::span<const LinearBackward> calls) {
  for (const LinearBackward& call : calls) one_backward(gpu, call);
}

}  // namespace rwkvx::cuda
