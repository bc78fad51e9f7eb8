#include "ops/cuda/ahead.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

namespace rwkvx::cuda {
namespace {

/// Weights [out, in] of bfloat16 that lie nowhere: nothing here reads them.
struct Weights {
  Weights(uintptr_t at, int64_t out, int64_t in, bool input_major = false) {
    matrix.type = DType::bf16;
    matrix.out = out, matrix.in = in;
    matrix.input_major = input_major;
    matrix.body = reinterpret_cast<const void*>(at);
  }
  int64_t bytes() const { return 2 * matrix.out * matrix.in; }
  GpuMatrix matrix;
};

struct Rows {
  std::vector<uint16_t> values = std::vector<uint16_t>(1 << 16);
  View view(int64_t rows, int64_t width) { return {values.data(), DType::bf16, {rows, width}}; }
};

FewRowsCall call(const Weights& w, View x, View y) { return {&w.matrix, x, y, Activation::none, false}; }

int64_t bytes_of(const Ahead& ahead) {
  int64_t bytes = 0;
  for (int i = 0; i < ahead.count; ++i) bytes += ahead.of[i].bytes;
  return bytes;
}

constexpr int64_t kMany = ReadingOrder::kBytes;

/// Everything is asked for once, by a launch before its own and no earlier than allowed.
TEST(ReadingOrder, AsksForEverythingOnceAndInTime) {
  Rows x, y;
  // 1/4, 2, 1/8 and 1/2 of what may be ahead, in launches of one or two.
  const std::array<Weights, 4> all{Weights(0x10000000, 1, kMany / 8), Weights(0x20000000, 2, kMany / 2),
                                   Weights(0x30000000, 1, kMany / 16), Weights(0x40000000, 1, kMany / 4)};
  const auto of = [&](size_t i) { return call(all[i], x.view(1, 8), y.view(1, 8)); };
  const std::vector<std::vector<FewRowsCall>> launches{{of(0)}, {of(1)}, {of(2), of(3)}};
  ReadingOrder order;
  order.learn();
  for (const auto& launch : launches) EXPECT_EQ(order.next(launch).count, 0);
  const ReadingOrder::Launches learned = order.learned();
  ASSERT_EQ(learned.size(), 3u);

  order.follow(learned);
  const Ahead first = order.next(launches[0]);
  ASSERT_EQ(first.count, 1);
  EXPECT_EQ(first.of[0].at, reinterpret_cast<const uint8_t*>(0x20000000));
  EXPECT_EQ(first.of[0].bytes, kMany);
  // The second launch reads the rest of its own; only what is behind it is asked for.
  const Ahead second = order.next(launches[1]);
  ASSERT_EQ(second.count, 2);
  EXPECT_EQ(second.of[0].at, reinterpret_cast<const uint8_t*>(0x30000000));
  EXPECT_EQ(second.of[1].at, reinterpret_cast<const uint8_t*>(0x40000000));
  EXPECT_EQ(bytes_of(second), all[2].bytes() + all[3].bytes());
  EXPECT_EQ(order.next(launches[2]).count, 0);
  EXPECT_EQ(order.next(launches[0]).count, 0);  // behind the end
}

TEST(ReadingOrder, GoesOnWhereItStopped) {
  Rows x, y;
  const std::array<Weights, 3> all{Weights(0x10000000, 1, 64), Weights(0x20000000, 1, kMany / 4),
                                   Weights(0x30000000, 1, kMany)};
  const auto launch = [&](size_t i) { return std::vector{call(all[i], x.view(1, 8), y.view(1, 8))}; };
  ReadingOrder order;
  order.learn();
  for (size_t i = 0; i < 3; ++i) order.next(launch(i));
  const ReadingOrder::Launches learned = order.learned();
  order.follow(learned);
  const Ahead first = order.next(launch(0)), second = order.next(launch(1));
  ASSERT_EQ(first.count, 2);
  EXPECT_EQ(first.of[1].bytes, kMany / 2);
  ASSERT_EQ(second.count, 1);
  EXPECT_EQ(second.of[0].at, reinterpret_cast<const uint8_t*>(0x30000000) + kMany / 2);
  EXPECT_EQ(second.of[0].bytes, kMany / 2);
}

TEST(ReadingOrder, StopsWhereLaunchesAreOthers) {
  Rows x, y;
  const std::array<Weights, 3> all{Weights(0x10000000, 8, 64), Weights(0x20000000, 8, 64),
                                   Weights(0x30000000, 8, 64)};
  const auto launch = [&](size_t i) { return std::vector{call(all[i], x.view(1, 8), y.view(1, 8))}; };
  ReadingOrder order;
  order.learn();
  for (size_t i = 0; i < 3; ++i) order.next(launch(i));
  order.follow(order.learned());
  EXPECT_EQ(order.next(launch(0)).count, 2);
  EXPECT_EQ(order.next(launch(2)).count, 0);
  EXPECT_EQ(order.next(launch(2)).count, 0);
}

TEST(ReadingOrder, RowsOfSparseInputsAreLeftToTheirProducer) {
  Rows x, hidden, y;
  const Weights key(0x10000000, 256, 64), value(0x20000000, 64, 256, true), next(0x30000000, 8, 64);
  for (const int64_t rows : {1, 2}) {
    const std::vector<FewRowsCall> first{call(key, x.view(rows, 64), hidden.view(rows, 256))},
        second{call(value, hidden.view(rows, 256), y.view(rows, 64))},
        third{call(next, x.view(rows, 64), y.view(rows, 8))};
    ReadingOrder order;
    order.learn();
    for (const auto& launch : {first, second, third}) order.next(launch);
    order.follow(order.learned());
    const Ahead ahead = order.next(first);
    const RowsAhead behind = order.rows_behind(first[0]);
    if (rows == 1) {
      ASSERT_EQ(ahead.count, 1);
      EXPECT_EQ(ahead.of[0].at, reinterpret_cast<const uint8_t*>(0x30000000));
      EXPECT_EQ(behind.body, reinterpret_cast<const uint8_t*>(0x20000000));
      EXPECT_EQ(behind.row_bytes, 128u);
    } else {  // of which most have a value other than zero
      ASSERT_EQ(ahead.count, 2);
      EXPECT_EQ(ahead.of[0].at, reinterpret_cast<const uint8_t*>(0x20000000));
      EXPECT_EQ(behind.body, nullptr);
    }
    EXPECT_EQ(order.rows_behind(third[0]).body, nullptr);
  }
}

}  // namespace
}  // namespace rwkvx::cuda
