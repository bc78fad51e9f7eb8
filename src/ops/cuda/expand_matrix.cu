#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/types.h"
#include "ops/cuda/weight_units.h"

namespace rwkvx::cuda {
namespace {

/// What is left of x after its first `part` bfloat16 parts.
__device__ __forceinline__ float left_after(float x, int part) {
  for (int i = 0; i < part; ++i) x -= to_float(from_float<Bf16>(x));
  return x;
}

template <typename Unit, typename To>
__global__ void expand_kernel(WeightRows rows, int64_t in, int64_t units, int64_t count, int part, To* to) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / units;
  const int at = static_cast<int>(i % units);
  Unit unit;
  unit.load(rows.row(row), at);
#pragma unroll
  for (int g = 0; g < Unit::kElements / 8; ++g) {
    float w[8];
    unit.group(g, w);
#pragma unroll
    for (int k = 0; k < 8; ++k) w[k] = left_after(w[k], part);
    To* target = to + row * in + Unit::at(at, g);
    store4(target, make_float4(w[0], w[1], w[2], w[3]));
    store4(target + 4, make_float4(w[4], w[5], w[6], w[7]));
  }
}

/// Of any size and alignment.
template <typename From, typename To>
__global__ void convert_kernel(const From* from, int64_t count, int part, To* to) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = from_float<To>(left_after(to_float(from[i]), part));
}

template <typename To>
void expand_to(Gpu& gpu, const GpuMatrix& m, int part, To* to) {
  const int64_t elements = m.out * m.in;
  const Grid each{blocks_for(elements, 256), 256};
  switch (m.type) {
    case DType::f32:
      return launch(gpu, each, convert_kernel<float, To>, static_cast<const float*>(m.body), elements, part,
                    to);
    case DType::bf16:
      return launch(gpu, each, convert_kernel<Bf16, To>, static_cast<const Bf16*>(m.body), elements, part,
                    to);
    case DType::f16:
      return launch(gpu, each, convert_kernel<Fp16, To>, static_cast<const Fp16*>(m.body), elements, part,
                    to);
    default:
      break;
  }
  with_unit(m.type, [&](auto unit) {
    using Unit = decltype(unit);
    const int64_t units = m.in / Unit::kElements;
    launch(gpu, {blocks_for(m.out * units, 256), 256}, expand_kernel<Unit, To>, weight_rows(m), m.in, units,
           m.out * units, part, to);
  });
}

}  // namespace

void expand_matrix(Gpu& gpu, const GpuMatrix& matrix, DType type, int part, void* to) {
  if (type == DType::bf16) return expand_to(gpu, matrix, part, static_cast<Bf16*>(to));
  RWKVX_ASSERT(type == DType::f32 && part == 0);
  expand_to(gpu, matrix, 0, static_cast<float*>(to));
}

}  // namespace rwkvx::cuda
