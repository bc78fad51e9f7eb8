#include "training/magic_prime.h"

#include <gtest/gtest.h>

#include <vector>

namespace rwkvx {
namespace {

TEST(MagicPrime, PrimesAgainstTrialDivision) {
  for (uint64_t n = 0; n < 5000; ++n) {
    bool prime = n >= 2;
    for (uint64_t d = 2; d * d <= n; ++d) prime = prime && n % d != 0;
    EXPECT_EQ(is_prime(n), prime) << n;
  }
  EXPECT_TRUE(is_prime(18446744073709551557u));  // the largest below 2^64
  EXPECT_FALSE(is_prime(3825123056546413051u));  // fools the first nine bases
  EXPECT_FALSE(is_prime(18446744073709551615u));
}

TEST(MagicPrime, TheOnesThatRwkvLmNames) {
  // demo-training-run.sh for MiniPile, and the Pile's in demo-training-run-v7-pile.sh.
  EXPECT_EQ(magic_prime(1498226207, 512), 2926181u);
  EXPECT_EQ(magic_prime(332115325534, 4096), 81082817u);
}

TEST(MagicPrime, LeavesATargetBehindTheLastWindow) {
  for (uint64_t context : {1u, 2u, 7u}) {
    for (uint64_t tokens = 0; tokens < 300; ++tokens) {
      const auto prime = magic_prime(tokens, context);
      if (!prime) continue;
      EXPECT_EQ(*prime % 3, 2u);
      EXPECT_LE((*prime - 1) * context + context + 1, tokens);
    }
  }
  EXPECT_FALSE(magic_prime(0, 4));
  EXPECT_FALSE(magic_prime(11, 4));
}

TEST(MagicPrime, EveryWindowOnce) {
  for (const uint64_t prime : {2u, 5u, 11u, 1013u}) {
    std::vector<int> seen(prime);
    for (uint64_t j = 0; j < 2 * prime; ++j) ++seen.at(magic_window(prime, j));
    for (const int count : seen) EXPECT_EQ(count, 2);
  }
}

TEST(MagicPrime, TheOrderOfRwkvLm) {
  // python3: p = 2926181; f = int(p * ((math.sqrt(5) - 1) / 2)); [(f * j ** 3) % p for j in (1, 2, 3, 40320)]
  constexpr uint64_t kPrime = 2926181;
  EXPECT_EQ(magic_window(kPrime, 0), 1808479u);
  EXPECT_EQ(magic_window(kPrime, 1), 2763108u);
  EXPECT_EQ(magic_window(kPrime, 2), 2010037u);
  EXPECT_EQ(magic_window(kPrime, 40319), 1326902u);
}

}  // namespace
}  // namespace rwkvx
