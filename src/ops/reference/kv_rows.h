#pragma once

#include <algorithm>
#include <cmath>

#include "ops/ops.h"
#include "ops/reference/access.h"

/// Rows of a KV store by the token's number, whatever their type.
namespace rwkvx::reference {

enum class Part { keys, values };

struct KvRow {
  void* data;    // of the page
  int64_t at;    // first element
  float* scale;  // i8 only
};

inline KvRow kv_row(const KvChunks& kv, Part part, int64_t head, int64_t token) {
  const auto chunk = static_cast<size_t>(token / kv.chunk_size);
  const int64_t row = head * kv.chunk_size + token % kv.chunk_size;
  const auto& scales = part == Part::keys ? kv.key_scales : kv.value_scales;
  return {(part == Part::keys ? kv.keys : kv.values)[chunk], row * kHeadSize,
          kv.dtype == DType::i8 ? scales[chunk] + row : nullptr};
}

/// Channel n of a token's key or value.
inline double kv_at(const KvChunks& kv, Part part, int64_t head, int64_t token, int64_t n) {
  const KvRow row = kv_row(kv, part, head, token);
  if (kv.dtype != DType::i8) return load(row.data, kv.dtype, row.at + n);
  return static_cast<double>(*row.scale) * static_cast<const int8_t*>(row.data)[row.at + n];
}

/// value(n) gives channel n. The arithmetic of i8 is float32's, so that backends agree in every bit.
template <typename Value>
void put_row(const KvChunks& kv, Part part, int64_t head, int64_t token, const Value& value) {
  const KvRow row = kv_row(kv, part, head, token);
  if (kv.dtype != DType::i8) {
    for (int64_t n = 0; n < kHeadSize; ++n) store(row.data, kv.dtype, row.at + n, value(n));
    return;
  }
  float most = 0;
  for (int64_t n = 0; n < kHeadSize; ++n) {
    const float size = std::abs(static_cast<float>(value(n)));
    most = size <= most ? most : size;  // a NaN or infinity stays
    if (!std::isfinite(most)) break;
  }
  if (!std::isfinite(most)) {  // seen in whatever is computed with it
    *row.scale = NAN;
    std::fill_n(static_cast<int8_t*>(row.data) + row.at, kHeadSize, int8_t{1});
    return;
  }
  *row.scale = most / 127;
  const float inverse = most > 0 ? 127 / most : 0;
  for (int64_t n = 0; n < kHeadSize; ++n) {
    static_cast<int8_t*>(row.data)[row.at + n] =
        static_cast<int8_t>(std::nearbyint(static_cast<float>(value(n)) * inverse));
  }
}

inline void copy_row(const KvChunks& kv, Part part, int64_t head, int64_t from, int64_t to) {
  const KvRow source = kv_row(kv, part, head, from), target = kv_row(kv, part, head, to);
  if (kv.dtype == DType::i8) {
    *target.scale = *source.scale;
    for (int64_t n = 0; n < kHeadSize; ++n) {
      static_cast<int8_t*>(target.data)[target.at + n] =
          static_cast<const int8_t*>(source.data)[source.at + n];
    }
    return;
  }
  for (int64_t n = 0; n < kHeadSize; ++n) {
    store(target.data, kv.dtype, target.at + n, load(source.data, kv.dtype, source.at + n));
  }
}

}  // namespace rwkvx::reference
