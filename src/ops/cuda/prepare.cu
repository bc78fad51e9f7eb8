#include <memory>

#include "ops/cuda/kernel.h"
#include "ops/cuda/matrix.h"
#include "ops/cuda/types.h"
#include "tensor/blocks.h"

namespace rwkvx::cuda {
namespace {

/// A block's bytes from `first` on go to `body`, its two bytes of d to `scales`.
__global__ void split_blocks_kernel(const uint8_t* blocks, int64_t count, int block_bytes, int d_at,
                                    uint8_t* body, uint16_t* scales) {
  allow_next_kernel();
  wait_for_previous_kernel();
  const int body_bytes = block_bytes - 2;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count * body_bytes) return;
  const int64_t block = i / body_bytes;
  const int at = static_cast<int>(i % body_bytes);
  const uint8_t* from = blocks + block * block_bytes;
  body[i] = from[at < d_at ? at : at + 2];
  if (at == 0) scales[block] = static_cast<uint16_t>(from[d_at] | from[d_at + 1] << 8);
}

/// [rows, columns] to [columns, rows].
template <typename T>
__global__ void turn_kernel(const T* from, int64_t rows, int64_t columns, T* to) {
  __shared__ T tile[32][33];
  allow_next_kernel();
  wait_for_previous_kernel();
  const int64_t across = (columns + 31) / 32;
  const int64_t column0 = blockIdx.x % across * 32, row0 = blockIdx.x / across * 32;
  for (int i = static_cast<int>(threadIdx.y); i < 32; i += static_cast<int>(blockDim.y)) {
    const int64_t row = row0 + i, column = column0 + threadIdx.x;
    if (row < rows && column < columns) tile[i][threadIdx.x] = from[row * columns + column];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.y); i < 32; i += static_cast<int>(blockDim.y)) {
    const int64_t column = column0 + i, row = row0 + threadIdx.x;
    if (row < rows && column < columns) to[column * rows + row] = tile[threadIdx.x][i];
  }
}

bool is_on_gpu(const void* memory) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, memory), "asking where weights lie");
  return attributes.type == cudaMemoryTypeDevice;
}

Buffer bytes_on_gpu(Gpu& gpu, uint64_t bytes) {
  return Buffer(DType::u8, {static_cast<int64_t>(bytes)}, gpu.allocator());
}

/// The weight's bytes in the GPU's memory: as they are, or copied to `copy`.
const void* on_gpu(Gpu& gpu, ConstView weight, Buffer& copy) {
  if (is_on_gpu(weight.data())) return weight.data();
  copy = bytes_on_gpu(gpu, weight.bytes());
  gpu.upload(weight.data(), copy.view().data(), weight.bytes());
  return copy.view().data();
}

void split_blocks(Gpu& gpu, ConstView weight, int d_at, GpuMatrix& to) {
  const DTypeInfo& type = info(weight.dtype());
  const int64_t count = weight.elements() / type.block_elements;
  const auto block_bytes = static_cast<int>(type.block_bytes);
  Buffer copy;
  const void* blocks = on_gpu(gpu, weight, copy);
  to.owned_body = bytes_on_gpu(gpu, static_cast<uint64_t>(count * (block_bytes - 2)));
  to.owned_scales = bytes_on_gpu(gpu, static_cast<uint64_t>(count * 2));
  launch(gpu, {blocks_for(count * (block_bytes - 2), 256), 256}, split_blocks_kernel,
         static_cast<const uint8_t*>(blocks), count, block_bytes, d_at,
         static_cast<uint8_t*>(to.owned_body.view().data()),
         static_cast<uint16_t*>(to.owned_scales.view().data()));
  to.body = to.owned_body.view().data();
  to.scales = static_cast<const uint16_t*>(to.owned_scales.view().data());
}

template <typename T>
void turn(Gpu& gpu, const void* from, int64_t rows, int64_t columns, void* to) {
  launch(gpu, {blocks_for(rows, 32) * blocks_for(columns, 32), dim3(32, 8)}, turn_kernel<T>,
         static_cast<const T*>(from), rows, columns, static_cast<T*>(to));
}

std::shared_ptr<GpuMatrix> make_matrix(Gpu& gpu, ConstView weight, bool sparse_input) {
  auto matrix = std::make_shared<GpuMatrix>();
  matrix->type = weight.dtype();
  matrix->out = weight.dim(0);
  matrix->in = weight.dim(1);
  switch (weight.dtype()) {
    case DType::q8_0:
    case DType::q4_0:
      split_blocks(gpu, weight, 0, *matrix);
      return matrix;
    case DType::q6_k:
      split_blocks(gpu, weight, static_cast<int>(offsetof(BlockQ6_K, d)), *matrix);
      return matrix;
    default:
      break;
  }
  const bool is_turned =
      sparse_input && is_float(weight.dtype()) && matrix->out % 8 == 0 && matrix->in % 8 == 0;
  if (!is_turned) {
    matrix->body = on_gpu(gpu, weight, matrix->owned_body);
    return matrix;
  }
  Buffer copy;
  const void* from = on_gpu(gpu, weight, copy);
  matrix->owned_body = bytes_on_gpu(gpu, weight.bytes());
  matrix->input_major = true;
  matrix->body = matrix->owned_body.view().data();
  if (weight.dtype() == DType::f32) {
    turn<float>(gpu, from, matrix->out, matrix->in, matrix->owned_body.view().data());
  } else {
    turn<uint16_t>(gpu, from, matrix->out, matrix->in, matrix->owned_body.view().data());
  }
  return matrix;
}

}  // namespace

std::shared_ptr<GpuMatrix> prepare_matrix(Gpu& gpu, ConstView weight, bool sparse_input) {
  std::shared_ptr<GpuMatrix> matrix = make_matrix(gpu, weight, sparse_input);
  if (matrix->owned_body) {
    gpu.synchronize();  // from here on nobody writes it, and kernels may read it before they wait
    matrix->constant = true;
  }
  return matrix;
}

}  // namespace rwkvx::cuda
