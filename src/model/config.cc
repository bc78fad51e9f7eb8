#include "model/config.h"

#include <charconv>

#include "base/error.h"

namespace rwkvx {
namespace {

std::vector<int64_t> even_places(const ModelConfig& config) {
  std::vector<int64_t> places;
  const int64_t every = config.sparse_blocks > 0 ? config.layers / config.sparse_blocks : 0;
  for (int64_t j = 1; j <= config.sparse_blocks; ++j) places.push_back(j * every);
  return places;
}

std::vector<int64_t> numbers(std::string_view text) {
  std::vector<int64_t> found;
  const char *at = text.data(), *const end = at + text.size();
  while (true) {
    int64_t n = 0;
    const auto [next, error] = std::from_chars(at, end, n);
    if (error != std::errc() || (next != end && *next != ',')) {
      fail(
          "'{}' does not say after how many RWKV-7 blocks each sparse block comes, as 2,4 does "
          "(--sparse-after)",
          printable(text));
    }
    found.push_back(n);
    if (next == end) return found;
    at = next + 1;
  }
}

}  // namespace

std::vector<BlockRef> block_order(const ModelConfig& config) {
  const std::vector<int64_t> places = config.sparse_after.empty() ? even_places(config) : config.sparse_after;
  std::vector<BlockRef> order;
  int64_t placed = 0;
  for (int64_t i = 0; i < config.layers; ++i) {
    order.push_back({false, i});
    while (placed < config.sparse_blocks && places[static_cast<size_t>(placed)] == i + 1) {
      order.push_back({true, placed++});
    }
  }
  return order;
}

void place_sparse_blocks(ModelConfig& config, std::string_view text) {
  config.sparse_after.clear();
  if (text.empty()) return;
  std::vector<int64_t> places = numbers(text);
  if (static_cast<int64_t>(places.size()) != config.sparse_blocks) {
    fail("'{}' places {} sparse blocks, and the model has {} (--sparse-after)", printable(text),
         places.size(), config.sparse_blocks);
  }
  int64_t least = 1;
  for (const int64_t place : places) {
    if (place < least || place > config.layers) {
      fail("'{}': sparse blocks come after 1 to {} RWKV-7 blocks, in ascending order (--sparse-after)",
           printable(text), config.layers);
    }
    least = place;
  }
  if (places != even_places(config)) config.sparse_after = std::move(places);
}

std::string sparse_places(const ModelConfig& config) {
  std::string text;
  for (const int64_t place : config.sparse_after) text += (text.empty() ? "" : ",") + std::to_string(place);
  return text;
}

}  // namespace rwkvx
