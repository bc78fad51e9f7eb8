#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/training_parts.h"

/// Many tensors in one launch: each is cut into pieces, one for each block.
namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kSumPiece = int64_t{128} << 10, kStepPiece = int64_t{32} << 10;  // elements

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

/// The last tensor that begins with or before the piece.
template <typename Tensor>
__device__ __forceinline__ int tensor_of(const Tensor* tensors, int count, int64_t piece) {
  int low = 0, high = count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (tensors[middle].first_piece <= piece) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

struct Summed {
  const float* x;
  int64_t elements, first_piece;
};

__device__ __forceinline__ double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

__global__ void __launch_bounds__(kThreads)
    sums_of_squares_kernel(const Summed* tensors, int count, double* pieces) {
  __shared__ double sums[kThreads];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t piece = blockIdx.x;
  const Summed tensor = tensors[tensor_of(tensors, count, piece)];
  const int64_t begin = (piece - tensor.first_piece) * kSumPiece;
  const float* x = tensor.x + begin;
  const auto elements = static_cast<int>(min(kSumPiece, tensor.elements - begin));
  const int vectors = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? elements / 4 : 0;
  double sum = 0;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const float4 v = load4(x + 4 * i);
    sum += (square(v.x) + square(v.y)) + (square(v.z) + square(v.w));
  }
#pragma unroll 4
  for (int i = 4 * vectors + static_cast<int>(threadIdx.x); i < elements; i += kThreads) sum += square(x[i]);
  sums[threadIdx.x] = sum;
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) pieces[piece] = sums[0];
}

struct Stepped {
  float* master;
  const float* gradient;
  float *moment1, *moment2;
  void* weight;  // null where it is the master
  int64_t elements, first_piece;
  float rate;   // over the correction of the first moment
  float decay;  // times the rate
  bool weight_is_bf16, aligned;
};

struct Step {
  float gradient_scale, beta1, new1, beta2, new2;  // new: 1 − β
  float correction2, eps;                          // 1 / (1 − β₂ᵗ)
};

__device__ __forceinline__ float stepped(const Step& step, const Stepped& tensor, float master,
                                         float gradient, float& moment1, float& moment2) {
  const float g = gradient * step.gradient_scale;
  moment1 = step.beta1 * moment1 + step.new1 * g;
  moment2 = step.beta2 * moment2 + step.new2 * g * g;
  const float change = tensor.rate * moment1 / (sqrtf(moment2 * step.correction2) + step.eps);
  // 1 − rate · decay would lose most digits of the decay.
  return master - fmaf(tensor.decay, master, change);
}

__global__ void __launch_bounds__(kThreads) adamw_kernel(const Stepped* tensors, int count, Step step) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t piece = blockIdx.x;
  const Stepped tensor = tensors[tensor_of(tensors, count, piece)];
  const int64_t begin = (piece - tensor.first_piece) * kStepPiece;
  const auto elements = static_cast<int>(min(kStepPiece, tensor.elements - begin));
  const int vectors = tensor.aligned ? elements / 4 : 0;
  float* master = tensor.master + begin;
  const float* gradient = tensor.gradient + begin;
  float *moment1 = tensor.moment1 + begin, *moment2 = tensor.moment2 + begin;
  auto* reals = static_cast<float*>(tensor.weight);
  auto* halves = static_cast<Bf16*>(tensor.weight);
#pragma unroll 2
  for (int i = 4 * static_cast<int>(threadIdx.x); i < 4 * vectors; i += 4 * kThreads) {
    const float4 g = load4(gradient + i);
    float4 x = load4(master + i), m = load4(moment1 + i), v = load4(moment2 + i);
    x.x = stepped(step, tensor, x.x, g.x, m.x, v.x);
    x.y = stepped(step, tensor, x.y, g.y, m.y, v.y);
    x.z = stepped(step, tensor, x.z, g.z, m.z, v.z);
    x.w = stepped(step, tensor, x.w, g.w, m.w, v.w);
    store4(master + i, x);
    store4(moment1 + i, m);
    store4(moment2 + i, v);
    if (tensor.weight == nullptr) continue;
    if (tensor.weight_is_bf16) {
      store4(halves + begin + i, x);
    } else {
      store4(reals + begin + i, x);
    }
  }
  for (int i = 4 * vectors + static_cast<int>(threadIdx.x); i < elements; i += kThreads) {
    float m = moment1[i], v = moment2[i];
    const float x = stepped(step, tensor, master[i], gradient[i], m, v);
    master[i] = x;
    moment1[i] = m;
    moment2[i] = v;
    if (tensor.weight == nullptr) continue;
    if (tensor.weight_is_bf16) {
      halves[begin + i] = from_float<Bf16>(x);
    } else {
      reals[begin + i] = x;
    }
  }
}

}  // namespace

void sums_of_squares(Gpu& gpu, std::span<const ConstView> xs, std::span<double> sums) {
  std::vector<Summed> tensors;
  std::vector<size_t> of_piece;
  for (size_t i = 0; i < xs.size(); ++i) {
    sums[i] = 0;
    if (xs[i].elements() == 0) continue;
    tensors.push_back({xs[i].as<float>(), xs[i].elements(), static_cast<int64_t>(of_piece.size())});
    of_piece.insert(of_piece.end(), blocks_for(xs[i].elements(), kSumPiece), i);
  }
  if (tensors.empty()) return;
  const Arena::Scope scope(gpu.scratch());
  const View pieces = gpu.scratch().take(DType::f64, {static_cast<int64_t>(of_piece.size())});
  const auto* table = scratch_copy(gpu, std::span<const Summed>(tensors));
  launch(gpu, {static_cast<unsigned>(of_piece.size()), kThreads}, sums_of_squares_kernel, table,
         static_cast<int>(tensors.size()), pieces.as<double>());
  std::vector<double> host(of_piece.size());
  gpu.download(pieces.data(), host.data(), host.size() * sizeof(double));
  for (size_t piece = 0; piece < host.size(); ++piece) sums[of_piece[piece]] += host[piece];
}

void adamw(Gpu& gpu, std::span<const AdamWTensor> tensors, const AdamWStep& step) {
  const auto t = static_cast<double>(step.step);
  const double correction1 = 1 - std::pow(step.beta1, t), correction2 = 1 - std::pow(step.beta2, t);
  std::vector<Stepped> table;
  int64_t pieces = 0;
  for (const AdamWTensor& tensor : tensors) {
    const int64_t elements = tensor.master.elements();
    if (elements == 0) continue;
    const double rate = step.rate * static_cast<double>(tensor.rate_factor);
    Stepped one{};
    one.master = tensor.master.as<float>();
    one.gradient = tensor.gradient.as<float>();
    one.moment1 = tensor.moment1.as<float>();
    one.moment2 = tensor.moment2.as<float>();
    one.weight = tensor.weight.data() == tensor.master.data() ? nullptr : tensor.weight.data();
    one.weight_is_bf16 = tensor.weight.dtype() == DType::bf16;
    RWKVX_ASSERT(one.weight == nullptr || one.weight_is_bf16 || tensor.weight.dtype() == DType::f32);
    one.elements = elements;
    one.first_piece = pieces;
    one.rate = static_cast<float>(rate / correction1);
    one.decay = tensor.decay ? static_cast<float>(rate * step.decay) : 0.0f;
    one.aligned = aligned(one.master, 16) && aligned(one.gradient, 16) && aligned(one.moment1, 16) &&
                  aligned(one.moment2, 16) && aligned(one.weight, one.weight_is_bf16 ? 8 : 16);
    pieces += blocks_for(elements, kStepPiece);
    table.push_back(one);
  }
  if (table.empty()) return;
  const Arena::Scope scope(gpu.scratch());
  const Step constants{static_cast<float>(step.gradient_scale),
                       static_cast<float>(step.beta1),
                       static_cast<float>(1 - step.beta1),
                       static_cast<float>(step.beta2),
                       static_cast<float>(1 - step.beta2),
                       static_cast<float>(1 / correction2),
                       static_cast<float>(step.eps)};
  launch(gpu, {static_cast<unsigned>(pieces), kThreads}, adamw_kernel,
         scratch_copy(gpu, std::span<const Stepped>(table)), static_cast<int>(table.size()), constants);
}

}  // namespace rwkvx::cuda
