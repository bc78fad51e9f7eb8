#pragma once

#include <memory>

#include "ops/ops.h"

namespace rwkvx {

/// The specification: scalar, single-threaded, every sum in float64, any float type in and out, never
/// optimised.
std::unique_ptr<Ops> make_reference_ops(Precision precision);

}  // namespace rwkvx
