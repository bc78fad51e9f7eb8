#include "base/assert.h"
#include "ops/cuda/kernel.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/types.h"
#include "ops/cuda/weight_units.h"

namespace rwkvx::cuda {
namespace {

constexpr int kThreads = 256;

/// One block for each row.
template <typename Y>
__global__ void __launch_bounds__(kThreads)
    layer_norm_kernel(const float* x, const float* gain, const float* bias, float eps, int width, Y* y) {
  __shared__ float scratch[32];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const float* from = x + row * width;
  float sum = 0;
  for (int c = 4 * threadIdx.x; c < width; c += 4 * kThreads) {
    const float4 v = load4(from + c);
    sum += (v.x + v.y) + (v.z + v.w);
  }
  const float mean = block_sum(sum, scratch) / static_cast<float>(width);
  float squares = 0;
  for (int c = 4 * threadIdx.x; c < width; c += 4 * kThreads) {
    const float4 v = load4(from + c);
    const float a = v.x - mean, b = v.y - mean, d = v.z - mean, e = v.w - mean;
    squares += (a * a + b * b) + (d * d + e * e);
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, scratch) / static_cast<float>(width) + eps);
  for (int c = 4 * threadIdx.x; c < width; c += 4 * kThreads) {
    const float4 v = load4(from + c), g = load4(gain + c), b = load4(bias + c);
    store4(y + row * width + c,
           make_float4((v.x - mean) * scale * g.x + b.x, (v.y - mean) * scale * g.y + b.y,
                       (v.z - mean) * scale * g.z + b.z, (v.w - mean) * scale * g.w + b.w));
  }
}

constexpr int kMostMixes = 6;

struct Mixed {
  int count;
  void* y[kMostMixes];
};

/// One block for each row. That of a sequence's first row also writes its `last`, which nobody else reads.
template <typename Y>
__global__ void __launch_bounds__(kThreads)
    token_shift_kernel(const float* x, const float* mix, const __grid_constant__ Sequences sequences,
                       int width, const __grid_constant__ Mixed mixed) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = sequences.offsets[0] + blockIdx.x;
  int s = 0;
  while (row >= sequences.offsets[s + 1]) ++s;
  const bool first = row == sequences.offsets[s];
  float* last = static_cast<float*>(sequences.states[s]);
  const float* now = x + row * width;
  const float* before = first ? last : now - width;
  for (int c = 4 * threadIdx.x; c < width; c += 4 * kThreads) {
    const float4 a = load4(now + c), b = load4(before + c);
    if (first) store4(last + c, load4(x + (sequences.offsets[s + 1] - 1) * width + c));
    for (int m = 0; m < mixed.count; ++m) {
      const float4 share = load4(mix + static_cast<int64_t>(m) * width + c);
      store4(static_cast<Y*>(mixed.y[m]) + row * width + c,
             make_float4(a.x + (b.x - a.x) * share.x, a.y + (b.y - a.y) * share.y,
                         a.z + (b.z - a.z) * share.z, a.w + (b.w - a.w) * share.w));
    }
  }
}

__device__ __forceinline__ float half_at(const uint8_t* p) {
  return half_to_float(static_cast<uint16_t>(p[0] | p[1] << 8));
}
/// Element `at` of a row as it lies in a file.
__device__ float stored_value(const uint8_t* row, DType type, int at) {
  switch (type) {
    case DType::f32:
      return reinterpret_cast<const float*>(row)[at];
    case DType::bf16:
      return to_float(reinterpret_cast<const Bf16*>(row)[at]);
    case DType::f16:
      return to_float(reinterpret_cast<const Fp16*>(row)[at]);
    case DType::q8_0: {
      const uint8_t* b = row + at / 32 * static_cast<int>(sizeof(BlockQ8_0));
      return half_at(b) * static_cast<float>(static_cast<int8_t>(b[2 + at % 32]));
    }
    case DType::q4_0: {
      const uint8_t* b = row + at / 32 * static_cast<int>(sizeof(BlockQ4_0));
      return half_at(b) * static_cast<float>((b[2 + at % 16] >> at % 32 / 16 * 4 & 15) - 8);
    }
    case DType::q4_k:
    case DType::q5_k: {
      const bool five = type == DType::q5_k;
      const uint8_t* b = row + at / 256 * static_cast<int>(five ? sizeof(BlockQ5_K) : sizeof(BlockQ4_K));
      const int k = at % 256, s = k / 32, i = k % 32;
      const int2 sub = scale_and_min([&](int n) -> int { return b[4 + n]; }, s);
      int q = b[(five ? 48 : 16) + s / 2 * 32 + i] >> s % 2 * 4 & 15;
      if (five) q |= (b[16 + i] >> s & 1) << 4;
      return half_at(b) * static_cast<float>(sub.x) * static_cast<float>(q) -
             half_at(b + 2) * static_cast<float>(sub.y);
    }
    case DType::q6_k: {
      const uint8_t* b = row + at / 256 * static_cast<int>(sizeof(BlockQ6_K));
      const int k = at % 256, h = k / 128, j = k % 128 / 32, i = k % 32;
      const int low = b[64 * h + 32 * (j % 2) + i] >> j / 2 * 4 & 15, high = b[128 + 32 * h + i] >> 2 * j & 3;
      return half_at(b + 208) * static_cast<float>(static_cast<int8_t>(b[192 + k / 16])) *
             static_cast<float>((low | high << 4) - 32);
    }
    default:
      return 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads) embed_kernel(const int32_t* tokens, const uint8_t* table,
                                                         DType type, int64_t row_bytes, int width, float* y) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  const uint8_t* from = table + tokens[row] * row_bytes;
  for (int c = static_cast<int>(threadIdx.x); c < width; c += kThreads)
    y[row * width + c] = stored_value(from, type, c);
}

/// Rows of whole words of 4 bytes.
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const uint32_t* x, const int64_t* rows, int words, uint32_t* y) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t row = blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += kThreads)
    y[row * words + i] = x[rows[row] * words + i];
}

constexpr int64_t kTableRows = 1 << 18;  // that one table of the host's takes

}  // namespace

int code_architecture() {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, layer_norm_kernel<float>), "asking for a kernel");
  return attributes.ptxVersion;
}

void layer_norm(Gpu& gpu, ConstView x, ConstView gain, ConstView bias, float eps, View y) {
  const auto rows = static_cast<unsigned>(x.dim(0));
  const int width = static_cast<int>(x.dim(1));
  RWKVX_ASSERT(width % 4 == 0);
  with_real_or_bf16(y, [&](auto* to) {
    launch(gpu, {rows, kThreads}, layer_norm_kernel<std::remove_pointer_t<decltype(to)>>, x.as<float>(),
           gain.as<float>(), bias.as<float>(), eps, width, to);
  });
}

void token_shift(Gpu& gpu, ConstView x, ConstView mix, std::span<const int64_t> offsets,
                 std::span<void* const> last, std::span<const View> y) {
  RWKVX_ASSERT(y.size() <= kMostMixes);
  Mixed mixed{static_cast<int>(y.size()), {}};
  for (size_t m = 0; m < y.size(); ++m) mixed.y[m] = y[m].data();
  for_groups(offsets, last, [&](const Sequences& group, size_t) {
    const auto rows = static_cast<unsigned>(group.offsets[group.count] - group.offsets[0]);
    with_real_or_bf16(y[0], [&](auto* to) {
      launch(gpu, {rows, kThreads}, token_shift_kernel<std::remove_pointer_t<decltype(to)>>, x.as<float>(),
             mix.as<float>(), group, static_cast<int>(x.dim(1)), mixed);
    });
  });
}

void embed(Gpu& gpu, std::span<const int32_t> tokens, ConstView table, View y) {
  const int64_t row_bytes = static_cast<int64_t>(table.bytes()) / table.dim(0);
  for (int64_t first = 0; first < y.dim(0); first += kTableRows) {
    const int64_t count = std::min(kTableRows, y.dim(0) - first);
    const int32_t* which = gpu.table(tokens.subspan(static_cast<size_t>(first), static_cast<size_t>(count)));
    launch(gpu, {static_cast<unsigned>(count), kThreads}, embed_kernel, which, pointer<uint8_t>(table),
           table.dtype(), row_bytes, static_cast<int>(y.dim(1)), y.rows(first, count).as<float>());
  }
}

void gather_rows(Gpu& gpu, ConstView x, std::span<const int64_t> rows, View y) {
  const auto bytes = static_cast<int64_t>(bytes_of(x.dtype(), x.dim(1)));
  RWKVX_ASSERT(bytes % 4 == 0);
  for (int64_t first = 0; first < y.dim(0); first += kTableRows) {
    const int64_t count = std::min(kTableRows, y.dim(0) - first);
    const int64_t* which = gpu.table(rows.subspan(static_cast<size_t>(first), static_cast<size_t>(count)));
    launch(gpu, {static_cast<unsigned>(count), kThreads}, gather_kernel, pointer<uint32_t>(x), which,
           static_cast<int>(bytes / 4), pointer<uint32_t>(y.rows(first, count)));
  }
}

}  // namespace rwkvx::cuda
