#pragma once

#include <memory>

#include "ops/cpu/thread_pool.h"
#include "ops/training.h"

namespace rwkvx::cpu {

/// The training operations of the cpu backend, in float32 (bfloat16 where products take it). The pool must
/// outlive them.
std::unique_ptr<TrainingOps> make_cpu_training(ThreadPool& pool);

}  // namespace rwkvx::cpu
