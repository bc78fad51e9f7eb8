#pragma once

#include <memory>

#include "ops/training.h"

namespace rwkvx {

/// The backward part of the reference backend: as plain as its forward.
std::unique_ptr<TrainingOps> make_reference_training();

}  // namespace rwkvx
