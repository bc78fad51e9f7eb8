#pragma once

#include <memory>
#include <span>
#include <vector>

#include "ops/cpu/thread_pool.h"
#include "ops/ops.h"

namespace rwkvx::cpu {

/// True where bf16 × bf16 → f32 products are faster than f32 ones: AVX512_BF16 or AMX.
bool has_bf16_products();
/// True where oneDNN multiplies tiles, several times as fast as vectors can.
bool has_amx();

/// Products of many rows: oneDNN multiplies blocks of outputs, each in one of our threads. Weights are read
/// as the file holds them, as a transposed plain matrix: packing them ahead gains a few percent and would
/// keep a second copy. Types other than x's are converted block by block.
class ManyRows {
 public:
  explicit ManyRows(ThreadPool& pool);
  ~ManyRows();
  void run(std::span<const LinearCall* const> calls);

 private:
  struct Key;
  struct Product;
  struct Part;
  struct ThreadState;
  struct State;
  const Product& product(const Key& key);
  void add_parts(const LinearCall& call, const void* x, int64_t block);
  void run_part(const Part& part, ThreadState& thread) const;

  ThreadPool& pool_;
  std::unique_ptr<State> state_;
};

}  // namespace rwkvx::cpu
