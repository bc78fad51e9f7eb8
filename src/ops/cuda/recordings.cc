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

void Recordings::run(Gpu& gpu, uint64_t key, const std::function<void()>& work) {
  if (gpu.recording()) return work();  // within another
  const auto [entry, first] = all_.try_emplace(key);
  if (first) {
    // Sizes that have not been seen take memory, which a recording cannot.
    if (all_.size() > kMost) {
      all_.clear();
      all_.try_emplace(key);
    }
    return work();
  }
  Recording& recording = entry->second;
  if (recording.possible && !recording.made) {
    try {
      Recorder recorder(gpu);
      if (recorder.running()) {
        work();
        recording.made = recorder.finish();
      }
    } catch (const CannotRecord&) {
    }
    recording.possible = recording.made != nullptr;
  }
  if (!recording.made) return work();
  gpu.play(recording.made.get());
}

}  // namespace rwkvx::cuda
