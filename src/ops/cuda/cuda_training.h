#pragma once

#include <memory>

#include "ops/cuda/gpu.h"
#include "ops/training.h"

namespace rwkvx::cuda {

std::unique_ptr<TrainingOps> make_training(Gpu& gpu, Precision precision);

}  // namespace rwkvx::cuda
