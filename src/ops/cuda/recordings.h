#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "ops/cuda/gpu.h"
#include "ops/cuda/resident.h"

namespace rwkvx::cuda {

/// Work that can be started as a whole, by its key: as a resident program, else what was done before as a CUDA
/// graph.
class Recordings {
 public:
  /// As Ops::replay. `compose` makes a program of the work, or throws CannotRecord.
  void run(Gpu& gpu, uint64_t key, const std::function<void()>& work,
           const std::function<std::shared_ptr<resident::Program>()>& compose);

 private:
  struct Recording {
    std::shared_ptr<resident::Program> program;
    bool graph_possible = true;
    std::shared_ptr<void> graph;
  };
  std::unordered_map<uint64_t, Recording> all_;
};

}  // namespace rwkvx::cuda
