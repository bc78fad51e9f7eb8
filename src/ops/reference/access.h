#pragma once

#include "base/assert.h"
#include "tensor/view.h"

namespace rwkvx::reference {

/// Element access by number, whatever the type: the reference computes in double and rounds when it stores.
inline double load(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(data)[i];
    case DType::f64:
      return static_cast<const double*>(data)[i];
    case DType::bf16:
      return to_float(static_cast<const BFloat16*>(data)[i]);
    case DType::f16:
      return to_float(static_cast<const Float16*>(data)[i]);
    case DType::i8:
      return static_cast<const int8_t*>(data)[i];
    case DType::i32:
      return static_cast<const int32_t*>(data)[i];
    default:
      RWKVX_ASSERT(!"a type of numbers");
  }
  return 0;
}

inline void store(void* data, DType dtype, int64_t i, double value) {
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(data)[i] = static_cast<float>(value);
      return;
    case DType::f64:
      static_cast<double*>(data)[i] = value;
      return;
    case DType::bf16:
      static_cast<BFloat16*>(data)[i] = to_bfloat16(static_cast<float>(value));
      return;
    case DType::f16:
      static_cast<Float16*>(data)[i] = to_float16(static_cast<float>(value));
      return;
    case DType::i8:
      static_cast<int8_t*>(data)[i] = static_cast<int8_t>(value);
      return;
    case DType::i32:
      static_cast<int32_t*>(data)[i] = static_cast<int32_t>(value);
      return;
    default:
      RWKVX_ASSERT(!"a type of numbers");
  }
}

inline double at(const ConstView& x, int64_t i) { return load(x.data(), x.dtype(), i); }
inline double at(const ConstView& x, int64_t row, int64_t column) { return at(x, row * x.dim(1) + column); }
inline void put(const View& y, int64_t i, double value) { store(y.data(), y.dtype(), i, value); }
inline void put(const View& y, int64_t row, int64_t column, double value) {
  put(y, row * y.dim(1) + column, value);
}

}  // namespace rwkvx::reference
