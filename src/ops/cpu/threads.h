#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace rwkvx::cpu {

/// Cores that this process may use: its affinity mask, cut by the quota of its cgroup (version 2 or 1). At
/// least 1.
int usable_cores();

/// Calls body(begin, end) for parts of 0 .. count, one for each thread. Counts below `grain` run serially: a
/// thread should get work worth some 10 µs. Every team has the same size, because libgomp ends and starts
/// threads when it changes.
template <typename Body>
void parallel_for(int threads, int64_t count, int64_t grain, const Body& body) {
  if (threads <= 1 || count < 2 || count < grain) {
    if (count > 0) body(int64_t{0}, count);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    const int64_t begin = count * me / team, end = count * (me + 1) / team;
    if (begin < end) body(begin, end);
  }
}

/// Calls body(i, thread) for tasks of uneven size, each handed to the next free thread, 0 ≤ thread < threads.
template <typename Body>
void parallel_tasks(int threads, int64_t count, bool worth_it, const Body& body) {
  if (threads <= 1 || count < 2 || !worth_it) {
    for (int64_t i = 0; i < count; ++i) body(i, 0);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) body(i, omp_get_thread_num());
}

/// The team size of libraries that take it from OpenMP (oneDNN), for the calling thread and a scope.
class TeamSize {
 public:
  explicit TeamSize(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
  ~TeamSize() { omp_set_num_threads(before_); }
  TeamSize(const TeamSize&) = delete;
  TeamSize& operator=(const TeamSize&) = delete;

 private:
  int before_;
};

}  // namespace rwkvx::cpu
