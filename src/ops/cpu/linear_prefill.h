#pragma once

#include <map>
#include <memory>

#include "ops/ops.h"

namespace rwkvx::cpu {

/// True where bf16 × bf16 → f32 products are faster than f32 ones: AVX512_BF16 or AMX.
bool has_bf16_products();

/// Products of many rows, by oneDNN. Weights are read as the file holds them, a transposed plain matrix:
/// packing them ahead gains a few percent and would keep a second copy. Types other than x's are converted
/// block by block.
class ManyRows {
 public:
  explicit ManyRows(int threads);
  ~ManyRows();
  void run(const LinearCall& call);

 private:
  struct Product;
  struct Key;
  const Product& product(const Key& key);
  void multiply(const Key& key, const void* x, const void* weight, void* y);
  void run_converted(const LinearCall& call);

  struct State;
  int threads_;
  std::unique_ptr<State> state_;
};

}  // namespace rwkvx::cpu
