#pragma once

#include <memory>

#include "ops/cuda/gpu.h"
#include "ops/ops.h"
#include "ops/training.h"

namespace rwkvx::cuda {

/// A weight matrix as kernels read it. Float types: rows as in files, or turned (input_major). q4_k and q5_k:
/// blocks as in files. The other quantised types: blocks without their scale d, which is no multiple of 16
/// bytes long with it, and the scales behind each other in `scales`.
struct GpuMatrix {
  DType type = DType::f32;
  int64_t out = 0, in = 0;
  bool input_major = false;  ///< [in, out]: inputs that are zero need not be read
  const void* body = nullptr;
  const uint16_t* scales = nullptr;  ///< [out, in / block], float16
  Buffer owned_body, owned_scales;   ///< empty where the memory is the caller's
  /// Everything is in place and will never change: kernels may read it before the kernels before them end.
  bool constant = false;
};

/// From host or GPU memory. Errors: out of memory.
std::shared_ptr<GpuMatrix> prepare_matrix(Gpu& gpu, ConstView weight, bool sparse_input);
inline const GpuMatrix& gpu_matrix(const Matrix& matrix) {
  return *static_cast<const GpuMatrix*>(matrix.prepared.get());
}

/// The whole matrix as float32, bfloat16 (rounded), or the difference between it and its first `part`
/// bfloat16 parts, rounded to bfloat16: of float16 two parts are the number, of float32 three. `to` [out,
/// in], or [in, out] if input_major.
void expand_matrix(Gpu& gpu, const GpuMatrix& matrix, DType type, int part, void* to);

/// One product as of matrices in memory, row-major: d [m, n] = a · b, or d += a · b.
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  DType type = DType::f32;    ///< of a and b: f32 or bf16
  bool a_transposed = false;  ///< a is [k, m] in memory, else [m, k]
  bool b_transposed = false;  ///< b is [n, k] in memory, else [k, n]
  void* d = nullptr;
  DType d_type = DType::f32;  ///< f32 or bf16
  bool add = false;
};
void multiply(Gpu& gpu, const Product& product);
/// By the library, if it is there and takes these sizes. Otherwise false.
bool multiply_by_library(Gpu& gpu, const Product& product);

/// Few rows: weights are read once, in whatever type they are. x [R, in] and y [R, out].
inline constexpr int64_t kFewRows = 8;
inline constexpr int64_t kFewRowsTensor = 16;  ///< by tensor cores
struct FewRowsCall {
  const GpuMatrix* w;
  ConstView x;
  View y;
  Activation activation;
  bool add;
};
bool fits_few_rows(const FewRowsCall& call);
/// All of one weight type and one type of x, not input_major, and one number of rows.
void few_rows(Gpu& gpu, std::span<const FewRowsCall> calls);
/// The same by tensor cores: x of bfloat16, weights of bfloat16 or quantised.
void few_rows_tensor(Gpu& gpu, std::span<const FewRowsCall> calls);
/// The same for one row of weights of bfloat16.
inline constexpr int64_t kMostOneRow = 45056;  ///< inputs, which lie in shared memory: every GPU has 99 KiB
bool fits_one_row(const FewRowsCall& call);
void few_rows_one(Gpu& gpu, std::span<const FewRowsCall> calls);
/// With norm_shift() of the row within it, if that is possible and worth it: not for a single product, which
/// takes as long with the norm as behind it. Otherwise false.
inline constexpr size_t kFewestNormed = 2;
inline constexpr int64_t kMostNormed = 4096;  ///< channels
bool few_rows_one_normed(Gpu& gpu, const NormShift& norm, std::span<const FewRowsCall> calls);
/// An input_major matrix.
void few_rows_sparse(Gpu& gpu, const FewRowsCall& call);
/// The same by tensor cores: x and weights of bfloat16.
void few_rows_sparse_tensor(Gpu& gpu, const FewRowsCall& call);

void linear(Gpu& gpu, std::span<const LinearCall> calls);
/// In one kernel, if that is possible and worth it. Otherwise false.
bool norm_shift_linear(Gpu& gpu, const NormShift& norm, std::span<const LinearCall> calls);
void linear_backward(Gpu& gpu, std::span<const LinearBackward> calls);

}  // namespace rwkvx::cuda
