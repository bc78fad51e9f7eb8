#include "ops/cuda/recordings.h"

namespace rwkvx::cuda {
namespace {

/// Sessions come and go, and what was recorded for their memory with them. Starting anew is cheap.
constexpr size_t kMost = 1024;

/// Ends a recording whatever happens in between.
class Recorder {
 public:
  explicit Recorder(Gpu& gpu) : gpu_(gpu), running_(gpu.begin_recording()) {}
  ~Recorder() {
    if (running_) gpu_.end_recording();
  }
  bool running() const { return running_; }
  std::shared_ptr<void> finish() {
    running_ = false;
    return gpu_.end_recording();
  }

 private:
  Gpu& gpu_;
  bool running_;
};

}  // namespace

void Recordings::run(Gpu& gpu, uint64_t key, const std::function<void()>& work,
                     const std::function<std::shared_ptr<resident::Program>()>& compose) {
  if (gpu.recording()) return work();  // within another
  if (all_.size() >= kMost && !all_.contains(key)) all_.clear();
  const auto [entry, first] = all_.try_emplace(key);
  Recording& recording = entry->second;
  if (first) {
    try {
      recording.program = compose();
    } catch (const CannotRecord&) {
    }
    // Sizes that have not been seen take memory, which a graph cannot.
    if (!recording.program) return work();
  }
  if (recording.program) return resident::run(gpu, *recording.program);
  if (recording.graph_possible && !recording.graph) {
    try {
      Recorder recorder(gpu);
      if (recorder.running()) {
        work();
        recording.graph = recorder.finish();
      }
    } catch (const CannotRecord&) {
    }
    recording.graph_possible = recording.graph != nullptr;
  }
  if (!recording.graph) return work();
  gpu.play(recording.graph.get());
}

}  // namespace rwkvx::cuda
