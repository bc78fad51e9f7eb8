// Operations counted for a token, against a count by hand.
#include "evaluation/machine_speed.h"

#include <gtest/gtest.h>

namespace rwkvx {
namespace {

TEST(OperationsPerToken, AreThoseOfTheMatricesAndOfAttention) {
  ModelConfig c;
  c.vocab = 100;
  c.channels = 64;
  c.layers = 2;
  c.sparse_blocks = 1;
  c.ffn = 128;
  c.decay_rank = 8;
  c.rate_rank = 8;
  c.value_rank = 4;
  c.gate_rank = 16;
  const double square = 64 * 64, mix = 2 * 64 * 128, down_and_up = 2 * 64;
  // Block 0 has no value residual.
  const double blocks = 3 * (4 * square + mix) + down_and_up * (2 * (8 + 8 + 16) + 4);
  EXPECT_EQ(operations_per_token(c, 0, false), 2 * blocks);
  EXPECT_EQ(operations_per_token(c, 0, true), 2 * (blocks + 100 * 64));
  EXPECT_EQ(operations_per_token(c, 10, false), 2 * blocks + 10 * 2 * (2 * 64))
      << "scores and sums of 10 keys";
}

TEST(MachineSpeed, IsMeasuredInBothPrecisions) {
  for (const Precision precision : {Precision::f32, Precision::bf16}) {
    const auto ops = make_ops({"cpu", precision, 1});
    const MachineSpeed speed = measure_machine(*ops);
    EXPECT_GT(speed.read_gigabytes_per_second, 0);
    EXPECT_GT(speed.product_gigaflops_per_second, 0);
  }
}

}  // namespace
}  // namespace rwkvx
