#pragma once

#include <array>
#include <cstdint>

namespace rwkvx {

/// xoshiro256++ (Blackman and Vigna 2019, "Scrambled linear pseudorandom number generators"), seeded by
/// SplitMix64 as its authors advise. The same numbers on every platform, which the standard library's
/// distributions do not promise, in 32 bytes of state.
class Random {
 public:
  using State = std::array<uint64_t, 4>;

  explicit Random(uint64_t seed) {
    for (uint64_t& word : state_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t z = seed;
      z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
      z = (z ^ z >> 27) * 0x94d049bb133111eb;
      word = z ^ z >> 31;
    }
  }
  /// A state of zeros only would stay there.
  explicit Random(const State& state) : state_(state) {}

  uint64_t next() {
    const uint64_t result = rotate_left(state_[0] + state_[3], 23) + state_[0];
    const uint64_t t = state_[1] << 17;
    state_[2] ^= state_[0];
    state_[3] ^= state_[1];
    state_[1] ^= state_[2];
    state_[0] ^= state_[3];
    state_[2] ^= t;
    state_[3] = rotate_left(state_[3], 45);
    return result;
  }

  /// In [0, 1), a multiple of 2^-53.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  const State& state() const { return state_; }

 private:
  static uint64_t rotate_left(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }
  State state_;
};

}  // namespace rwkvx
