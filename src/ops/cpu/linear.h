#pragma once

#include <span>

#include "ops/cpu/linear_prefill.h"
#include "ops/cpu/scratch.h"
#include "ops/ops.h"

namespace rwkvx::cpu {

/// Ops::linear(): chooses by the number of rows.
class Linear {
 public:
  explicit Linear(int threads) : threads_(threads), many_rows_(threads) {}
  void run(std::span<const LinearCall> calls);

 private:
  void run_few(std::span<const LinearCall> calls);

  int threads_;
  ManyRows many_rows_;
  Scratch inputs_;
};

}  // namespace rwkvx::cpu
