#pragma once

#include "model/config.h"
#include "ops/ops.h"

namespace rwkvx {

/// What the machine does at its best, to compare a model's speed with. Measured, so other work lowers it.
struct MachineSpeed {
  double read_gigabytes_per_second = 0;     ///< memory, all threads reading; of a GPU, a copy's two sides
  double product_gigaflops_per_second = 0;  ///< a large matrix product of the backend, in its precision
};

/// Takes about a second, and 256 MB of memory.
MachineSpeed measure_machine(Ops& ops);

/// Operations of a token's matrix products: 2 for each weight of a matrix but the embedding's and, when not
/// `with_head`, the head's (a prompt needs its last row only); attention to `keys` keys in each sparse block,
/// 4 C for each. The recurrence is not counted.
double operations_per_token(const ModelConfig& config, double keys, bool with_head);

}  // namespace rwkvx
