#include "training/magic_prime.h"

#include <array>
#include <cmath>

#include "base/assert.h"

namespace rwkvx {
namespace {

__extension__ using Wide = unsigned __int128;

uint64_t mul_mod(uint64_t a, uint64_t b, uint64_t n) { return static_cast<uint64_t>(Wide{a} * b % n); }

uint64_t pow_mod(uint64_t base, uint64_t exponent, uint64_t n) {
  uint64_t result = 1 % n;
  for (base %= n; exponent > 0; exponent >>= 1) {
    if (exponent & 1) result = mul_mod(result, base, n);
    base = mul_mod(base, base, n);
  }
  return result;
}

}  // namespace

/// Miller and Rabin's test; these bases decide every number below 2^64 (Sorenson and Webster 2015).
bool is_prime(uint64_t n) {
  constexpr std::array<uint64_t, 12> kBases{2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37};
  if (n < 2) return false;
  for (const uint64_t p : kBases) {
    if (n % p == 0) return n == p;
  }
  uint64_t odd = n - 1;
  int twos = 0;
  for (; odd % 2 == 0; odd /= 2) ++twos;
  for (const uint64_t base : kBases) {
    uint64_t x = pow_mod(base, odd, n);
    bool composite = x != 1 && x != n - 1;
    for (int i = 1; i < twos && composite; ++i) {
      x = mul_mod(x, x, n);
      composite = x != n - 1;
    }
    if (composite) return false;
  }
  return true;
}

std::optional<uint64_t> magic_prime(uint64_t tokens, uint64_t context) {
  RWKVX_ASSERT(context > 0);
  // p < tokens / context - 1 as a real number: p · context + context < tokens.
  if (tokens <= context) return std::nullopt;
  for (uint64_t p = (tokens - context - 1) / context; p >= 2; --p) {
    if (p % 3 == 2 && is_prime(p)) return p;
  }
  return std::nullopt;
}

uint64_t magic_window(uint64_t prime, uint64_t sample) {
  // RWKV-LM computes the factor in float64, so the same has to be done here.
  const auto factor = static_cast<uint64_t>(static_cast<double>(prime) * ((std::sqrt(5.0) - 1) / 2));
  const uint64_t j = (sample + 1) % prime;
  return mul_mod(factor, mul_mod(j, mul_mod(j, j, prime), prime), prime);
}

}  // namespace rwkvx
