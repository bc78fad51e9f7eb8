#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "ops/cuda/gpu.h"

namespace rwkvx::cuda {

/// Work that was done before, to be started as a whole: CUDA graphs by their keys.
class Recordings {
 public:
  /// As Ops::replay: does `work` the first time, records it the second.
  void run(Gpu& gpu, uint64_t key, const std::function<void()>& work);

 private:
  struct Recording {
    bool possible = true;
    std::shared_ptr<void> made;
  };
  std::unordered_map<uint64_t, Recording> all_;
};

}  // namespace rwkvx::cuda
