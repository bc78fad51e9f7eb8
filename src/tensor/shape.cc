#include "tensor/shape.h"

#include <fmt/ranges.h>

#include <bit>

#include "base/assert.h"
#include "base/checked.h"

namespace rwkvx {

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
  const auto block = static_cast<uint64_t>(i.block_elements);
  RWKVX_ASSERT(std::has_single_bit(block));
  if ((static_cast<uint64_t>(elements) & (block - 1)) != 0) return std::nullopt;
  return checked_mul(static_cast<uint64_t>(elements) >> std::countr_zero(block), i.block_bytes);
}

uint64_t bytes_of(DType dtype, int64_t elements) {
  const auto bytes = checked_bytes(dtype, elements);
  RWKVX_ASSERT(bytes.has_value());
  return *bytes;
}

}  // namespace rwkvx
