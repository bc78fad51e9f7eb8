#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace rwkvx::cpu {

/// Cores that this process may use: its affinity mask, cut by the quota of its cgroup (version 2 or 1). At
/// least 1.
int usable_cores();

/// Threads that share tasks with the one that calls run(). Made for the hundreds of short parallel regions of
/// a token: an idle worker watches for work for some 50 µs and then sleeps, and run() never waits for a
/// worker that has not come yet, so that on a busy machine the caller just does the work itself. (OpenMP's
/// teams wait for every member at every region: when the kernel has put two on one core, for milliseconds.)
/// One thread at a time may call run(); a task must not call it.
class ThreadPool {
 public:
  /// `threads` counts the caller.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(task, thread) for each task in 0 .. count, 0 ≤ thread < threads(), each handed to the next
  /// free thread. Rethrows the first exception of a task when all threads have stopped.
  template <typename Body>
  void run(int64_t count, const Body& body) {
    run(count, call_of<Body>, &body, false);
  }

  /// The same for tasks whose neighbours read neighbouring memory: each thread has a stretch of them, which
  /// it takes one after another, so that what is fetched ahead at a task's end is its own; who has none left
  /// takes them from the ends of others' stretches. count < 2³².
  template <typename Body>
  void run_stretches(int64_t count, const Body& body) {
    run(count, call_of<Body>, &body, true);
  }

  /// Calls body(begin, end) for parts of 0 .. count; below `grain` for all of it, in this thread. A thread
  /// should get work worth some 10 µs.
  template <typename Body>
  void run_ranges(int64_t count, int64_t grain, const Body& body) {
    if (threads() == 1 || count < 2 || count < grain) {
      if (count > 0) body(int64_t{0}, count);
      return;
    }
    const int64_t parts = std::min<int64_t>(count, int64_t{2} * threads());
    run(parts, [&](int64_t part, int) { body(count * part / parts, count * (part + 1) / parts); });
  }

  /// When run() opened and closed a parallel region of several tasks.
  struct Region {
    std::chrono::steady_clock::time_point opened, closed;
    int64_t tasks;
  };
  /// For benchmarks: where every pool's run() notes its regions while this is not null.
  static inline std::vector<Region>* regions = nullptr;

 private:
  using Call = void (*)(const void* context, int64_t task, int thread);
  template <typename Body>
  static void call_of(const void* context, int64_t task, int thread) {
    (*static_cast<const Body*>(context))(task, thread);
  }
  /// The tasks of a thread that nobody has taken: the first in the upper half, behind the last in the lower.
  struct alignas(64) Stretch {
    std::atomic<uint64_t> tasks{0};
  };
  void stop();
  void run(int64_t count, Call call, const void* context, bool stretches);
  void open(int64_t count, Call call, const void* context, bool stretches);
  void close();
  void work(int thread);
  void take_tasks(int thread) noexcept;
  void take_stretches(int thread);
  void drop_tasks();

  // The job, written before epoch_ becomes odd (open) and left alone until it is even (closed) and nobody is
  // inside.
  Call call_ = nullptr;
  const void* context_ = nullptr;
  int64_t count_ = 0;
  bool in_stretches_ = false;
  std::exception_ptr error_;
  std::mutex error_mutex_;

  alignas(64) std::atomic<int64_t> next_{0};    // the next task
  alignas(64) std::atomic<uint32_t> epoch_{0};  // odd: a job is open
  alignas(64) std::atomic<int32_t> inside_{0};  // workers that may be reading the job
  std::atomic<bool> stop_{false};
  int spins_;
  std::vector<Stretch> stretches_;  // one for each thread
  std::vector<std::thread> workers_;
};

}  // namespace rwkvx::cpu
