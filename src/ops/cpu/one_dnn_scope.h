#pragma once

#include <signal.h>

namespace rwkvx::cpu {

/// What a thread that calls oneDNN needs, for a scope. Its team in this thread is this thread. And signals
/// wait: oneDNN 2.6's float32 product for AVX2 keeps its stack pointer in the work space while it runs, and a
/// handler's frame there would overwrite the heap.
class OneDnnScope {
 public:
  OneDnnScope();
  ~OneDnnScope();
  OneDnnScope(const OneDnnScope&) = delete;
  OneDnnScope& operator=(const OneDnnScope&) = delete;

 private:
  int team_;
  sigset_t signals_;
};

}  // namespace rwkvx::cpu
