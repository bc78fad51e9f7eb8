#pragma once

#include <cstdint>
#include <functional>

namespace rwkvx {

/// Long work reports here; whoever called decides how it looks. Called from the calling thread only. Units
/// are the work's own (bytes, tokens). May throw to stop the work.
using Progress = std::function<void(uint64_t done, uint64_t total)>;

}  // namespace rwkvx
