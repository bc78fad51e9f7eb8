#include "tensor/convert.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

float load(float x) { return x; }
double load(double x) { return x; }
float load(BFloat16 x) { return to_float(x); }
float load(Float16 x) { return to_float(x); }
template <typename F>
void store(F x, float& y) {
  y = static_cast<float>(x);
}
template <typename F>
void store(F x, double& y) {
  y = static_cast<double>(x);
}
template <typename F>
void store(F x, BFloat16& y) {
  y = to_bfloat16(static_cast<float>(x));
}
template <typename F>
void store(F x, Float16& y) {
  y = to_float16(static_cast<float>(x));
}

/// Calls f with a typed pointer to the view's elements.
template <typename V, typename F>
void with_type(const V& x, F f) {
  switch (x.dtype()) {
    case DType::f32:
      return f(x.template as<float>());
    case DType::f64:
      return f(x.template as<double>());
    case DType::bf16:
      return f(x.template as<BFloat16>());
    case DType::f16:
      return f(x.template as<Float16>());
    default:
      fail("tensors of type {} cannot be converted", name(x.dtype()));
  }
}

constexpr int64_t kPiece = 4096;  // elements of quantised tensors that pass through float32 at a time

ConstView piece_of(ConstView x, int64_t begin, int64_t count) {
  return {static_cast<const std::byte*>(x.data()) + bytes_of(x.dtype(), begin), x.dtype(), Shape{count}};
}
View piece_of(View x, int64_t begin, int64_t count) {
  return {static_cast<std::byte*>(x.data()) + bytes_of(x.dtype(), begin), x.dtype(), Shape{count}};
}

void convert_quantised(ConstView from, View to) {
  const int64_t n = from.elements();
  std::array<float, kPiece> values;
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = std::min(kPiece, n - begin);
    const View piece(values.data(), DType::f32, {count});
    if (is_quantised(from.dtype())) {
      dequantise(piece_of(from, begin, count).data(), from.dtype(), values.data(), count);
    } else {
      convert(piece_of(from, begin, count), piece);
    }
    if (is_quantised(to.dtype())) {
      quantise(values.data(), to.dtype(), piece_of(to, begin, count).data(), count);
    } else {
      convert(piece, piece_of(to, begin, count));
    }
  }
}

template <typename Bits>
int64_t count_exponent(const Bits* bits, int64_t n, Bits mask) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += (bits[i] & mask) == mask;
  return count;
}

template <typename T>
void transpose_as(const void* from, void* to, int64_t m, int64_t n) {
  constexpr int64_t kBlock = 32;
  for (int64_t i0 = 0; i0 < m; i0 += kBlock) {
    for (int64_t j0 = 0; j0 < n; j0 += kBlock) {
      for (int64_t i = i0; i < std::min(m, i0 + kBlock); ++i) {
        for (int64_t j = j0; j < std::min(n, j0 + kBlock); ++j) {
          static_cast<T*>(to)[j * m + i] = static_cast<const T*>(from)[i * n + j];
        }
      }
    }
  }
}

}  // namespace

void convert(ConstView from, View to) {
  RWKVX_ASSERT(from.elements() == to.elements());
  if (from.dtype() == to.dtype() && (is_float(from.dtype()) || is_computable(from.dtype()))) {
    std::memcpy(to.data(), from.data(), from.bytes());
    return;
  }
  const auto known = [](DType type) { return is_float(type) || is_computable(type); };
  if (known(from.dtype()) && known(to.dtype()) && (is_quantised(from.dtype()) || is_quantised(to.dtype()))) {
    return convert_quantised(from, to);
  }
  const int64_t n = from.elements();
  with_type(from, [&](const auto* x) {
    with_type(to, [&](auto* y) {
      for (int64_t i = 0; i < n; ++i) store(load(x[i]), y[i]);
    });
  });
}

int64_t count_not_finite(ConstView x) {
  const int64_t n = x.elements();
  switch (x.dtype()) {
    case DType::f32:
      return count_exponent<uint32_t>(static_cast<const uint32_t*>(x.data()), n, 0x7f800000u);
    case DType::f64:
      return count_exponent<uint64_t>(static_cast<const uint64_t*>(x.data()), n, 0x7ff0000000000000u);
    case DType::bf16:
      return count_exponent<uint16_t>(static_cast<const uint16_t*>(x.data()), n, 0x7f80u);
    case DType::f16:
      return count_exponent<uint16_t>(static_cast<const uint16_t*>(x.data()), n, 0x7c00u);
    default:
      return count_not_finite_blocks(x.data(), x.dtype(), n);
  }
}

void transpose(ConstView from, View to) {
  RWKVX_ASSERT(from.dtype() == to.dtype() && from.shape().rank() == 2 && to.dim(0) == from.dim(1) &&
               to.dim(1) == from.dim(0));
  switch (info(from.dtype()).block_bytes) {
    case 1:
      return transpose_as<uint8_t>(from.data(), to.data(), from.dim(0), from.dim(1));
    case 2:
      return transpose_as<uint16_t>(from.data(), to.data(), from.dim(0), from.dim(1));
    case 4:
      return transpose_as<uint32_t>(from.data(), to.data(), from.dim(0), from.dim(1));
    case 8:
      return transpose_as<uint64_t>(from.data(), to.data(), from.dim(0), from.dim(1));
    default:
      fail("tensors of type {} cannot be transposed", name(from.dtype()));
  }
}

}  // namespace rwkvx
