// Signals that come during products: they are handled, and do not touch what is computed.
#include <gtest/gtest.h>
#include <sys/time.h>

#include <algorithm>
#include <csignal>

#include "ops/ops.h"

namespace rwkvx {
namespace {

volatile std::sig_atomic_t handled = 0;

/// Uses some of the stack that it is given.
void on_alarm(int) {
  volatile char frame[4096];
  std::fill(std::begin(frame), std::end(frame), char{0x55});
  handled = handled + 1;
}

TEST(Signals, DuringProducts) {
  constexpr int64_t kRows = 256, kIn = 4096, kOut = 512;
  const auto ops = make_ops({"cpu", Precision::f32, 2});
  Buffer x(DType::f32, {kRows, kIn}), weight(DType::f32, {kOut, kIn});
  for (int64_t i = 0; i < kRows * kIn; ++i) x.as<float>()[i] = static_cast<float>(i % 7) - 3;
  for (int64_t i = 0; i < kOut * kIn; ++i) weight.as<float>()[i] = static_cast<float>(i % 5) - 2;
  const Matrix w = ops->prepare(weight);
  Buffer quiet(DType::f32, {kRows, kOut}), y(DType::f32, {kRows, kOut});
  ops->linear({.x = x, .w = &w, .y = quiet});

  struct sigaction action {};
  action.sa_handler = on_alarm;
  action.sa_flags = SA_RESTART;
  struct sigaction before {};
  ASSERT_EQ(::sigaction(SIGALRM, &action, &before), 0);
  const itimerval often{{0, 500}, {0, 500}};
  ASSERT_EQ(::setitimer(ITIMER_REAL, &often, nullptr), 0);
  bool same = true;
  for (int i = 0; i < 40; ++i) {
    ops->linear({.x = x, .w = &w, .y = y});
    same = same && std::equal(y.as<float>(), y.as<float>() + kRows * kOut, quiet.as<float>());
  }
  const itimerval never{};
  ::setitimer(ITIMER_REAL, &never, nullptr);
  ::sigaction(SIGALRM, &before, nullptr);
  EXPECT_TRUE(same);
  EXPECT_GT(handled, 10);
}

}  // namespace
}  // namespace rwkvx
