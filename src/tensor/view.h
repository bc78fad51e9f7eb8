#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include "base/assert.h"
#include "tensor/dtype.h"
#include "tensor/half.h"
#include "tensor/shape.h"

namespace rwkvx {

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<Float16> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<int16_t> {
  static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::i64;
};

/// A contiguous row-major tensor in somebody else's memory. Byte is std::byte or const std::byte.
template <typename Byte>
class BasicView {
 public:
  using Void = std::conditional_t<std::is_const_v<Byte>, const void, void>;

  BasicView() = default;
  BasicView(Void* data, DType dtype, Shape shape) : data_(data), shape_(shape), dtype_(dtype) {}
  /// A mutable view serves where a const one is asked for.
  template <typename Other, typename = std::enable_if_t<std::is_const_v<Byte> && !std::is_const_v<Other>>>
  BasicView(const BasicView<Other>& other) : BasicView(other.data(), other.dtype(), other.shape()) {}

  Void* data() const { return data_; }
  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_.dim(i); }
  int64_t elements() const { return shape_.elements(); }
  uint64_t bytes() const { return bytes_of(dtype_, elements()); }
  explicit operator bool() const { return data_ != nullptr; }

  /// Typed access; the type must be the view's.
  template <typename T>
  auto* as() const {
    RWKVX_ASSERT(DTypeOf<T>::value == dtype_);
    return static_cast<std::conditional_t<std::is_const_v<Byte>, const T, T>*>(data_);
  }
  /// Rows begin .. begin + count along the first dimension.
  BasicView rows(int64_t begin, int64_t count) const {
    RWKVX_ASSERT(shape_.rank() >= 1 && begin >= 0 && count >= 0 && begin + count <= shape_[0]);
    std::array<int64_t, Shape::kMaxRank> dims{};
    for (int i = 0; i < shape_.rank(); ++i) dims[static_cast<size_t>(i)] = shape_[i];
    dims[0] = count;
    const uint64_t row = shape_[0] == 0 ? 0 : bytes() / static_cast<uint64_t>(shape_[0]);
    return BasicView(static_cast<Byte*>(data_) + static_cast<uint64_t>(begin) * row, dtype_,
                     Shape(std::span<const int64_t>(dims.data(), static_cast<size_t>(shape_.rank()))));
  }
  BasicView reshaped(Shape shape) const {
    RWKVX_ASSERT(shape.elements() == elements());
    return BasicView(data_, dtype_, shape);
  }
  std::span<Byte> raw() const { return {static_cast<Byte*>(data_), static_cast<size_t>(bytes())}; }

 private:
  Void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
};

using View = BasicView<std::byte>;
using ConstView = BasicView<const std::byte>;

}  // namespace rwkvx
