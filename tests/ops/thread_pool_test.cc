#include "ops/cpu/thread_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <fstream>
#include <stdexcept>

#include "base/error.h"

namespace rwkvx::cpu {
namespace {

std::vector<int> times_run(ThreadPool& pool, int64_t count, bool stretches = false) {
  std::vector<std::atomic<int>> times(static_cast<size_t>(count));
  const auto body = [&](int64_t task, int thread) {
    EXPECT_GE(thread, 0);
    EXPECT_LT(thread, pool.threads());
    ++times[static_cast<size_t>(task)];
  };
  stretches ? pool.run_stretches(count, body) : pool.run(count, body);
  return {times.begin(), times.end()};
}

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 5}) {  // more than there may be cores, too
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t count = round % 17;
      ASSERT_THAT(times_run(pool, count), testing::AllOf(testing::SizeIs(count), testing::Each(1)));
    }
  }
}

TEST(ThreadPool, SaysThatNoMoreThreadsCanBeStarted) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than this leaves";
#endif
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit little = before;
  little.rlim_cur = pages * 4096 + (uint64_t{200} << 20);  // stacks of some twenty threads
  ASSERT_EQ(setrlimit(RLIMIT_AS, &little), 0);
  std::string message;
  try {
    const ThreadPool pool(1000);
  } catch (const Error& error) {
    message = error.what();
  }
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_THAT(message,
              testing::AllOf(testing::HasSubstr("of 1000 threads"), testing::HasSubstr("--threads")));
}

TEST(ThreadPool, StretchesCoverEverythingOnce) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 300; ++round) {
      const int64_t count = round % 17 + (round % 50 == 0 ? 1000 : 0);
      ASSERT_THAT(times_run(pool, count, true), testing::AllOf(testing::SizeIs(count), testing::Each(1)));
    }
  }
}

/// The caller is the first thread: its stretch is the first part, from the front.
TEST(ThreadPool, AStretchIsTakenInOrder) {
  ThreadPool pool(2);
  std::vector<int64_t> own;
  pool.run_stretches(100, [&](int64_t task, int thread) {
    if (thread == 0 && task < 50) own.push_back(task);
  });
  // Its end may have been taken by the other one, and none of it if the caller came last.
  for (size_t i = 0; i < own.size(); ++i) EXPECT_EQ(own[i], static_cast<int64_t>(i));
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    // Tasks that wait for each other: they end only when all three threads take one.
    std::atomic<int> arrived{0};
    pool.run(3, [&](int64_t, int) {
      ++arrived;
      while (arrived < 3) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 3);
  }
}

TEST(ThreadPool, RangesCoverEverythingOnce) {
  ThreadPool pool(3);
  for (const int64_t count : {0, 1, 2, 3, 7, 100}) {
    for (const int64_t grain : {1, 50}) {
      std::vector<std::atomic<int>> times(static_cast<size_t>(count));
      pool.run_ranges(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++times[static_cast<size_t>(i)];
      });
      EXPECT_THAT(std::vector<int>(times.begin(), times.end()), testing::Each(1));
    }
  }
}

/// Both ways of running tasks hand a task's exception to the caller and leave the pool usable.
template <class Run>
void expect_rethrown(int64_t failing, const Run& run) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    const auto fail = [&](int64_t task, int) {
      if (task == failing) throw std::runtime_error("a task failed");
    };
    EXPECT_THROW(run(pool, fail), std::runtime_error);
    EXPECT_THAT(times_run(pool, 50), testing::Each(1));
  }
}

TEST(ThreadPool, RethrowsAndGoesOn) {
  expect_rethrown(20, [](ThreadPool& pool, const auto& task) { pool.run(50, task); });
}

TEST(ThreadPool, RethrowsFromStretchesAndGoesOn) {
  expect_rethrown(40, [](ThreadPool& pool, const auto& task) { pool.run_stretches(50, task); });
}

TEST(UsableCores, AreAtLeastOne) { EXPECT_GE(usable_cores(), 1); }

}  // namespace
}  // namespace rwkvx::cpu
