#pragma once

#include <memory>
#include <span>

#include "ops/cpu/thread_pool.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// TrainingOps::linear_backward(): oneDNN multiplies blocks of dx and dw, each in one of our threads. Every
/// sum is taken in one order, whatever the number of threads.
class BackwardProducts {
 public:
  explicit BackwardProducts(ThreadPool& pool);
  ~BackwardProducts();
  void run(std::span<const LinearBackward> calls);

 private:
  struct Key;
  struct Product;
  struct Part;
  struct Operands;
  struct ThreadState;
  struct State;
  const Product& product(const Key& key);
  void run_independent(std::span<const LinearBackward> calls);
  Operands prepare(const LinearBackward& call);
  void add_parts(const LinearBackward& call, const Operands& operands, int64_t block);
  void run_part(const Part& part, ThreadState& thread) const;

  ThreadPool& pool_;
  std::unique_ptr<State> state_;
};

}  // namespace rwkvx::cpu
