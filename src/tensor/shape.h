#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

#include "base/assert.h"
#include "tensor/dtype.h"

namespace rwkvx {

/// Up to four dimensions, row-major: the last one is contiguous. A scalar has rank 0 and one element.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
    RWKVX_ASSERT(dims.size() <= kMaxRank);
    for (size_t i = 0; i < dims.size(); ++i) dims_[i] = dims[i];
  }

  int rank() const { return rank_; }
  /// dim(-1) is the last.
  int64_t dim(int i) const { return dims_[static_cast<size_t>(i < 0 ? i + rank_ : i)]; }
  int64_t operator[](int i) const { return dim(i); }
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  /// Product of all dimensions. Shapes of untrusted files are checked with checked_elements() first.
  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t d : dims()) n *= d;
    return n;
  }
  bool operator==(const Shape& other) const;
  /// "[2, 64]"
  std::string str() const;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

/// The product of the dimensions; nothing if one is negative or the product exceeds 2^62.
std::optional<int64_t> checked_elements(std::span<const int64_t> dims);

/// Bytes of `elements` elements. For quantised types `elements` must be whole blocks: nothing otherwise, or
/// on overflow.
std::optional<uint64_t> checked_bytes(DType dtype, int64_t elements);
uint64_t bytes_of(DType dtype, int64_t elements);

}  // namespace rwkvx
