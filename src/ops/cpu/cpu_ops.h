#pragma once

#include <memory>

#include "ops/cpu/tiles.h"
#include "ops/ops.h"

namespace rwkvx {

/// oneDNN and, for tiles, kernels of our own for matrix products of many rows, Highway kernels for the rest.
/// threads: 0 for one for each core that the process may use. tiles: what multiplies them in bf16 precision;
/// null: vectors do. Errors: f64 precision.
std::unique_ptr<Ops> make_cpu_ops(Precision precision, int threads,
                                  const cpu::TileUnit* tiles = cpu::tile_unit());

}  // namespace rwkvx
