#include "tensor/shape.h"

#include <fmt/ranges.h>

#include "base/assert.h"
#include "base/checked.h"

namespace rwkvx {

Shape::Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  RWKVX_ASSERT(dims.size() <= kMaxRank);
  for (size_t i = 0; i < dims.size(); ++i) dims_[i] = dims[i];
}

int64_t Shape::elements() const {
  int64_t n = 1;
  for (int64_t d : dims()) n *= d;
  return n;
}

bool Shape::operator==(const Shape& other) const { return rank_ == other.rank_ && dims_ == other.dims_; }

std::string Shape::str() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

std::optional<int64_t> checked_elements(std::span<const int64_t> dims) {
  uint64_t n = 1;
  bool zero = false;
  for (int64_t d : dims) {
    if (d < 0) return std::nullopt;
    if (d == 0) {
      zero = true;
      continue;
    }
    const auto product = checked_mul(n, static_cast<uint64_t>(d));
    if (!product || *product > (uint64_t{1} << 62)) return std::nullopt;
    n = *product;
  }
  return zero ? 0 : static_cast<int64_t>(n);
}

std::optional<uint64_t> checked_bytes(DType dtype, int64_t elements) {
  const DTypeInfo& i = info(dtype);
  if (elements < 0) return std::nullopt;
  // A token asks some hundred times, and dividing is slow.
  if (i.block_elements == 1) return checked_mul(static_cast<uint64_t>(elements), i.block_bytes);
  if (elements % i.block_elements != 0) return std::nullopt;
  return checked_mul(static_cast<uint64_t>(elements) / i.block_elements, i.block_bytes);
}

uint64_t bytes_of(DType dtype, int64_t elements) {
  const auto bytes = checked_bytes(dtype, elements);
  RWKVX_ASSERT(bytes.has_value());
  return *bytes;
}

}  // namespace rwkvx
