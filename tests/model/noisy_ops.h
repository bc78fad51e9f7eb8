#pragma once

#include <memory>

#include "ops/ops.h"

namespace rwkvx::test {

/// The reference backend in float32, except that the input of every matrix product, and every key and value
/// that is stored, carries the random error of one rounding to bfloat16: independent and uniform within half
/// a unit in the last of 8 significant bits. It is the error model that the bounds for bf16 precision are
/// derived from (docs/decisions/0007-bf16-bound.md), and shares no code with bf16 precision.
std::shared_ptr<Ops> make_noisy_ops(uint64_t seed);

/// The reference in float32, but r, k, v, a and b of the WKV-7 recurrence carry such an error each, as they
/// do where tiles take them (docs/decisions/0017-cpu-tiles.md).
std::shared_ptr<Ops> make_noisy_recurrence_ops(uint64_t seed);

/// The reference in float32, but every stored key and value carries an independent error of the size of its
/// rounding to int8: uniform within half a step, max|row| / 127.
std::shared_ptr<Ops> make_noisy_kv_ops(uint64_t seed);

}  // namespace rwkvx::test
