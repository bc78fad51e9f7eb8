#pragma once

#include <cstdint>
#include <optional>

namespace rwkvx {

bool is_prime(uint64_t n);

/// RWKV-LM's order of sampling walks the windows of `context` tokens by i = (⌊p·(√5−1)/2⌋ · j³) mod p for j =
/// 1, 2, 3, …: p is prime with p mod 3 = 2, so that cubing permutes the numbers below p, and every window
/// below p comes once in p samples. This is the largest such p that leaves a target behind the last window:
/// p < tokens / context − 1. Nothing when there is none (fewer than four windows).
/// Source: RWKV-LM, RWKV-v7/train_temp (dataset.py, demo-training-prepare.sh).
std::optional<uint64_t> magic_prime(uint64_t tokens, uint64_t context);

/// The window of sample j (from 0).
uint64_t magic_window(uint64_t prime, uint64_t sample);

}  // namespace rwkvx
