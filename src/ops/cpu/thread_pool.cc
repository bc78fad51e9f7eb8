#include "ops/cpu/thread_pool.h"

#include <system_error>
#include <utility>

#include "base/error.h"
#include "ops/cpu/one_dnn_scope.h"

namespace rwkvx::cpu {
namespace {

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : stretches_(static_cast<size_t>(threads)) {
  // With more threads than cores a watching thread takes the core of a working one.
  spins_ = threads <= usable_cores() ? 2000 : 10;
  try {
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
  } catch (const std::system_error& error) {
    const size_t started = workers_.size() + 1;
    stop();
    fail("only {} of {} threads could be started ({}); ask for fewer (--threads)", started, threads,
         error.code().message());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  epoch_ += 2;  // still even, but another
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::take_tasks(int thread) noexcept {
  try {
    if (in_stretches_) return take_stretches(thread);
    for (int64_t task = next_.fetch_add(1); task < count_; task = next_.fetch_add(1)) {
      call_(context_, task, thread);
    }
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
    drop_tasks();
  }
}

void ThreadPool::take_stretches(int thread) {
  const auto take = [&](Stretch& stretch, bool first) {
    uint64_t tasks = stretch.tasks;
    while (true) {
      const auto begin = static_cast<uint32_t>(tasks >> 32), end = static_cast<uint32_t>(tasks);
      if (begin >= end) return int64_t{-1};
      const uint64_t rest = first ? tasks + (uint64_t{1} << 32) : tasks - 1;
      if (stretch.tasks.compare_exchange_weak(tasks, rest))
        return static_cast<int64_t>(first ? begin : end - 1);
    }
  };
  const size_t threads = stretches_.size(), own = static_cast<size_t>(thread);
  for (size_t i = 0; i < threads; ++i) {
    Stretch& stretch = stretches_[(own + i) % threads];
    for (int64_t task = take(stretch, i == 0); task >= 0; task = take(stretch, i == 0)) {
      call_(context_, task, thread);
    }
  }
}

void ThreadPool::drop_tasks() {
  next_ = count_;
  for (Stretch& stretch : stretches_) stretch.tasks = 0;
}

void ThreadPool::run(int64_t count, Call call, const void* context, bool stretches) {
  if (workers_.empty() || count < 2) {
    for (int64_t task = 0; task < count; ++task) call(context, task, 0);
    return;
  }
  if (regions == nullptr) {
    open(count, call, context, stretches);
    close();
  } else {
    Region& region = regions->emplace_back(std::chrono::steady_clock::now());
    open(count, call, context, stretches);
    close();
    region.closed = std::chrono::steady_clock::now();
    region.tasks = count;
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::open(int64_t count, Call call, const void* context, bool stretches) {
  call_ = call;
  context_ = context;
  count_ = count;
  next_ = 0;
  in_stretches_ = stretches;
  if (stretches) {
    const auto threads = static_cast<int64_t>(stretches_.size());
    for (int64_t t = 0; t < threads; ++t) {
      const auto begin = static_cast<uint64_t>(count * t / threads),
                 end = static_cast<uint64_t>(count * (t + 1) / threads);
      stretches_[static_cast<size_t>(t)].tasks = begin << 32 | end;
    }
  }
  ++epoch_;
  epoch_.notify_all();
}

void ThreadPool::close() {
  take_tasks(0);
  ++epoch_;
  // Whoever came inside before the job was closed sees it through; who comes now sees that it is closed.
  for (int spin = 0;; ++spin) {
    const int32_t inside = inside_;
    if (inside == 0) break;
    if (spin < spins_) {
      pause();
    } else {
      inside_.wait(inside);
    }
  }
}

void ThreadPool::work(int thread) {
  const OneDnnScope scope;  // tasks multiply
  uint32_t seen = 0;
  while (!stop_) {
    const uint32_t epoch = epoch_;
    if (epoch == seen || epoch % 2 == 0) {
      seen = epoch;
      for (int spin = 0; spin < spins_ && epoch_ == seen; ++spin) pause();
      if (epoch_ == seen) epoch_.wait(seen);
      continue;
    }
    ++inside_;
    if (epoch_ == epoch) take_tasks(thread);
    seen = epoch;
    if (--inside_ == 0) inside_.notify_one();
  }
}

}  // namespace rwkvx::cpu
