#pragma once

#include <string>

namespace rwkvx::cpu {

/// What the kernels take of this processor: "AVX-512 with VNNI and bf16, AMX"; AMX where `tiles` are used.
std::string instruction_sets(bool tiles);

}  // namespace rwkvx::cpu
