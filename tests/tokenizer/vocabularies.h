#pragma once

#include <cstdint>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "error_of.h"
#include "tokenizer/tokenizer.h"

namespace rwkvx::testing {

/// Id 0 without bytes, then the 256 single bytes, then `more`.
inline std::vector<std::string> with_all_bytes(const std::vector<std::string>& more = {}) {
  std::vector<std::string> tokens(1);
  for (int i = 0; i < 256; ++i) tokens.emplace_back(1, static_cast<char>(i));
  tokens.insert(tokens.end(), more.begin(), more.end());
  return tokens;
}

/// Bytes from the first `alphabet` values, so that a small alphabet makes long matches likely.
inline std::string random_bytes(std::mt19937& random, size_t size, unsigned alphabet) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes += static_cast<char>(random() % alphabet);
  return bytes;
}

/// `count` different strings of 2 to max_size bytes beside the single ones.
inline std::vector<std::string> random_vocabulary(std::mt19937& random, size_t count, size_t max_size,
                                                  unsigned alphabet) {
  std::set<std::string> more;
  for (size_t i = 0; i < count; ++i)
    more.insert(random_bytes(random, 2 + random() % (max_size - 1), alphabet));
  return with_all_bytes({more.begin(), more.end()});
}

/// Greedy longest match by trying every token at every place.
inline std::vector<TokenId> naive_encode(const std::vector<std::string>& tokens, std::string_view text) {
  std::vector<TokenId> ids;
  while (!text.empty()) {
    size_t best = 0;
    for (size_t i = 1; i < tokens.size(); ++i) {
      if (tokens[i].size() > tokens[best].size() && text.starts_with(tokens[i])) best = i;
    }
    ids.push_back(static_cast<TokenId>(best));
    text.remove_prefix(tokens[best].size());
  }
  return ids;
}

}  // namespace rwkvx::testing
