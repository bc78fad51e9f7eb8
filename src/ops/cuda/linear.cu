#include <algorithm>
#include <vector>

#include "ops/cuda/activation.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/types.h"

namespace rwkvx::cuda {
namespace {

/// Float32 results of a product wait for their activation in a slice of this size, which stays in the cache.
constexpr int64_t kSliceBytes = int64_t{40} << 20;

template <typename Y>
__global__ void activate_kernel(const float* x, int64_t count, Activation activation, Y* y) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = 4 * (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
  if (i + 4 <= count) {
    const float4 v = load4(x + i);
    store4(y + i, make_float4(activate(activation, v.x), activate(activation, v.y), activate(activation, v.z),
                              activate(activation, v.w)));
    return;
  }
  for (int64_t k = i; k < count; ++k) y[k] = from_float<Y>(activate(activation, x[k]));
}

/// y = activation(x), of one type each; x may be y.
void activate_rows(Gpu& gpu, ConstView x, Activation activation, View y) {
  const int64_t count = x.elements();
  with_real_or_bf16(y, [&](auto* to) {
    launch(gpu, {blocks_for(count, 1024), 256}, activate_kernel<std::remove_pointer_t<decltype(to)>>,
           x.as<float>(), count, activation, to);
  });
}

/// Weights in the types of a product with x: one matrix, or several whose sum they are.
std::vector<const void*> operands(Gpu& gpu, const GpuMatrix& m, DType x) {
  if (m.type == x) return {m.body};
  int parts = 1;
  if (x == DType::bf16) parts = m.type == DType::f16 ? 2 : (m.type == DType::f32 ? 3 : 1);
  std::vector<const void*> all;
  for (int part = 0; part < parts; ++part) {
    const View to = gpu.scratch().take(x, {m.out, m.in});
    expand_matrix(gpu, m, x, part, to.data());
    all.push_back(to.data());
  }
  return all;
}

void multiply_rows(Gpu& gpu, const GpuMatrix& m, std::span<const void* const> weights, ConstView x, View y,
                   bool add) {
  for (const void* w : weights) {
    multiply(gpu, {.m = x.dim(0),
                   .n = m.out,
                   .k = m.in,
                   .a = x.data(),
                   .b = w,
                   .type = x.dtype(),
                   .b_transposed = !m.input_major,
                   .d = y.data(),
                   .d_type = y.dtype(),
                   .add = add});
    add = true;
  }
}

void many_rows(Gpu& gpu, const LinearCall& call) {
  const Arena::Scope scope(gpu.scratch());
  const GpuMatrix& m = gpu_matrix(*call.w);
  const std::vector<const void*> weights = operands(gpu, m, call.x.dtype());
  const bool once = weights.size() == 1;
  if (call.activation == Activation::none && (once || call.y.dtype() == DType::f32)) {
    return multiply_rows(gpu, m, weights, call.x, call.y, call.add);
  }
  if (call.y.dtype() == DType::f32) {
    multiply_rows(gpu, m, weights, call.x, call.y, false);
    return activate_rows(gpu, call.y, call.activation, call.y);
  }
  const int64_t rows = call.x.dim(0);
  const int64_t slice =
      std::clamp<int64_t>(kSliceBytes / (4 * m.out) / 256 * 256, 256, std::max<int64_t>(rows, 256));
  const View sums = gpu.scratch().take(DType::f32, {std::min(slice, rows), m.out});
  for (int64_t first = 0; first < rows; first += slice) {
    const int64_t count = std::min(slice, rows - first);
    multiply_rows(gpu, m, weights, call.x.rows(first, count), sums.rows(0, count), false);
    activate_rows(gpu, sums.rows(0, count), call.activation, call.y.rows(first, count));
  }
}

}  // namespace

void linear(Gpu& gpu, std::span<const LinearCall> calls) {
  std::vector<FewRowsCall> few;
  for (const LinearCall& call : calls) {
    const FewRowsCall one{&gpu_matrix(*call.w), call.x, call.y, call.activation, call.add};
    if (!fits_few_rows(one)) {
      many_rows(gpu, call);
    } else if (one.w->input_major) {
      few_rows_sparse(gpu, one);
    } else {
      few.push_back(one);
    }
  }
  while (!few.empty()) {
    std::vector<FewRowsCall> same, others;
    for (const FewRowsCall& one : few) {
      const bool fits = one.w->type == few[0].w->type && one.x.dtype() == few[0].x.dtype() &&
                        one.x.dim(0) == few[0].x.dim(0);
      (fits ? same : others).push_back(one);
    }
    few_rows(gpu, same);
    few = std::move(others);
  }
}

bool norm_shift_linear(Gpu& gpu, const NormShift& norm, std::span<const LinearCall> calls) {
  std::vector<FewRowsCall> few;
  for (const LinearCall& call : calls) {
    few.push_back({&gpu_matrix(*call.w), call.x, call.y, call.activation, call.add});
  }
  return few_rows_one_normed(gpu, norm, few);
}

}  // namespace rwkvx::cuda
