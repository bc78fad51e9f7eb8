#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "ops/cuda/gpu.h"

/// What several operations of training share.
namespace rwkvx::cuda {

/// A copy of an array of the host's, of any size, among the temporaries of the operation. In pieces that the
/// driver has taken a copy of when it returns, so that nothing waits.
template <typename T>
const T* scratch_copy(Gpu& gpu, std::span<const T> host) {
  if (host.empty()) return nullptr;
  constexpr size_t kPiece = size_t{64} << 10;
  auto* to = static_cast<std::byte*>(
      gpu.scratch().take(DType::u8, {static_cast<int64_t>(host.size_bytes())}).data());
  const auto bytes = std::as_bytes(host);
  for (size_t at = 0; at < bytes.size(); at += kPiece) {
    gpu.upload(bytes.data() + at, to + at, std::min(kPiece, bytes.size() - at));
  }
  return reinterpret_cast<const T*>(to);
}

inline constexpr int kSummedParameters = 6;

/// to[i][c] += Σ partials[j][i][c] over j, in a fixed order. partials [count, to.size(), width]; to: at most
/// kSummedParameters of [width], null where frozen.
void add_parameter_sums(Gpu& gpu, const float* partials, int64_t count, int64_t width,
                        std::span<float* const> to);

/// Rows cut into pieces that all run at once, for kernels whose blocks own columns and sum over rows.
struct RowPieces {
  int64_t rows, count;
  RowPieces(const Gpu& gpu, int64_t total, int64_t column_blocks, int64_t blocks_at_once) {
    const int64_t wanted = std::max<int64_t>(1, gpu.multiprocessors() * blocks_at_once / column_blocks);
    rows = (total + wanted - 1) / wanted;
    count = (total + rows - 1) / rows;
  }
};

}  // namespace rwkvx::cuda
