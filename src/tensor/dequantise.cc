#include "base/assert.h"
#include "tensor/expand_block.h"
#include "tensor/quantise.h"

namespace rwkvx {
namespace {

template <typename Block>
void expand_all(const void* blocks, float* to, int64_t count) {
  constexpr int64_t kElements = sizeof(Block) > 2 * kSmallBlock ? kSuperBlock : kSmallBlock;
  const auto* b = static_cast<const Block*>(blocks);
  for (int64_t i = 0; i < count / kElements; ++i) expand(b[i], to + i * kElements);
}

bool is_finite(Float16 x) { return (x.bits & 0x7c00) != 0x7c00; }

template <typename Block>
int64_t count_blocks(const void* blocks, int64_t n) {
  const auto* b = static_cast<const Block*>(blocks);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {
    bool finite = is_finite(b[i].d);
    if constexpr (requires { b[i].d_min; }) finite = finite && is_finite(b[i].d_min);
    count += finite ? 0 : 1;
  }
  return count;
}

}  // namespace

bool is_computable(DType type) {
  return type == DType::q8_0 || type == DType::q4_0 || type == DType::q4_k || type == DType::q5_k ||
         type == DType::q6_k;
}

void dequantise(const void* blocks, DType type, float* to, int64_t count) {
  RWKVX_ASSERT(count % info(type).block_elements == 0);
  switch (type) {
    case DType::q8_0:
      return expand_all<BlockQ8_0>(blocks, to, count);
    case DType::q4_0:
      return expand_all<BlockQ4_0>(blocks, to, count);
    case DType::q4_k:
      return expand_all<BlockQ4_K>(blocks, to, count);
    case DType::q5_k:
      return expand_all<BlockQ5_K>(blocks, to, count);
    case DType::q6_k:
      return expand_all<BlockQ6_K>(blocks, to, count);
    default:
      RWKVX_ASSERT(!"a type that is_computable()");
  }
}

int64_t count_not_finite_blocks(const void* blocks, DType type, int64_t count) {
  const int64_t n = count / info(type).block_elements;
  switch (type) {
    case DType::q8_0:
      return count_blocks<BlockQ8_0>(blocks, n);
    case DType::q4_0:
      return count_blocks<BlockQ4_0>(blocks, n);
    case DType::q4_k:
      return count_blocks<BlockQ4_K>(blocks, n);
    case DType::q5_k:
      return count_blocks<BlockQ5_K>(blocks, n);
    case DType::q6_k:
      return count_blocks<BlockQ6_K>(blocks, n);
    default:
      return 0;
  }
}

}  // namespace rwkvx
