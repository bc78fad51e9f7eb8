#include "training/training_data.h"

#include <bit>

#include "base/assert.h"
#include "base/error.h"
#include "training/magic_prime.h"

namespace rwkvx {
namespace {

/// SplitMix64's finalizer.
uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

class TokenWindows final : public TrainingData {
 public:
  TokenWindows(TokenFile file, const WindowOptions& options)
      : file_(std::move(file)), options_(options), context_(static_cast<uint64_t>(options.context)) {
    RWKVX_ASSERT(options.context > 0 && options.vocab > 0);
    const std::string name = file_.path().string();
    if (file_.tokens() <= context_) {
      fail("{}: its {} tokens do not fill a window of {} and a target behind it; choose a smaller --context",
           name, file_.tokens(), context_);
    }
    windows_ = (file_.tokens() - 1) / context_;
    if (options.order == Order::magic) {
      const auto prime = magic_prime(file_.tokens(), context_);
      if (!prime) {
        fail("{}: {} windows of {} tokens are too few for the magic order; use --order shuffled", name,
             windows_, context_);
      }
      windows_ = *prime;
    }
    if (options.document_resets) check_documents();
  }

  uint64_t epoch() const override { return windows_; }

  void add(uint64_t index, TrainBatch& batch) const override {
    const uint64_t begin = window(index) * context_;
    std::vector<TokenId> tokens(context_ + 1);
    file_.read(begin, tokens, options_.vocab);
    std::vector<TokenMark> marks(file_.marked() ? tokens.size() : 0);
    if (file_.marked()) file_.read_marks(begin, marks);
    add_sequence(tokens, marks, batch);
    if (options_.document_resets) {
      batch.resets.resize(batch.tokens.size());
      uint8_t* const resets = batch.resets.data() + batch.rows() - options_.context;
      for (uint64_t d = first_document_behind(begin); d < file_.documents(); ++d) {
        const uint64_t at = file_.document(d).begin;
        if (at >= begin + context_) break;
        resets[at - begin] = 1;
      }
    }
  }

 private:
  uint64_t window(uint64_t index) const {
    switch (options_.order) {
      case Order::sequential:
        return index % windows_;
      case Order::magic:
        return magic_window(windows_, index);
      case Order::shuffled:
        return shuffled_index(index % windows_, windows_, mix(options_.seed) ^ index / windows_);
    }
    return 0;
  }

  void check_documents() const {
    uint64_t end = 0;
    for (uint64_t d = 0; d < file_.documents(); ++d) {
      const TokenFile::Range range = file_.document(d);
      if (range.begin != end) {
        fail("{}: document {} does not lie behind the one before; train without --document-resets",
             file_.path().string(), d);
      }
      end += range.size;
    }
  }

  /// The first document that begins after `position`: the state is empty at a window's first token anyway.
  uint64_t first_document_behind(uint64_t position) const {
    uint64_t low = 0, high = file_.documents();
    while (low < high) {
      const uint64_t middle = low + (high - low) / 2;
      if (file_.document(middle).begin > position) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return low;
  }

  TokenFile file_;
  WindowOptions options_;
  uint64_t context_, windows_ = 0;
};

}  // namespace

uint64_t shuffled_index(uint64_t index, uint64_t count, uint64_t key) {
  RWKVX_ASSERT(index < count);
  const int half = (std::bit_width(count - 1) + 1) / 2;
  if (half == 0) return 0;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half, right = index & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (mix(mix(key + round) ^ right) & mask);
      left = right;
      right = next;
    }
    index = left << half | right;
  } while (index >= count);
  return index;
}

void add_sequence(std::span<const TokenId> tokens, std::span<const TokenMark> marks, TrainBatch& batch) {
  RWKVX_ASSERT(tokens.size() >= 2 && (marks.empty() || marks.size() == tokens.size()));
  const size_t first = batch.tokens.size();
  batch.tokens.insert(batch.tokens.end(), tokens.begin(), tokens.end() - 1);
  batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
  if (!marks.empty() && batch.weights.empty()) batch.weights.resize(first, 1.0f);
  if (!marks.empty() || !batch.weights.empty()) batch.weights.resize(batch.tokens.size(), 1.0f);
  if (!marks.empty() || !batch.resets.empty()) batch.resets.resize(batch.tokens.size());
  for (size_t i = 0; i + 1 < marks.size(); ++i) {
    batch.weights[first + i] = marks[i + 1].weight;
    if (!(marks[i + 1].weight > 0)) batch.targets[first + i] = -1;
    batch.resets[first + i] = marks[i].reset ? 1 : 0;
  }
  batch.offsets.push_back(batch.rows());
}

std::unique_ptr<TrainingData> make_token_windows(TokenFile file, const WindowOptions& options) {
  return std::make_unique<TokenWindows>(std::move(file), options);
}

}  // namespace rwkvx
