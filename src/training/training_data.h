#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "training/token_file.h"
#include "training/train_batch.h"

namespace rwkvx {

/// An endless list of samples. Sample i is the same whenever it is asked for, so that a run that is resumed
/// sees what it would have seen.
class TrainingData {
 public:
  virtual ~TrainingData() = default;
  /// Samples until all has been seen once.
  virtual uint64_t epoch() const = 0;
  /// Appends sample `index` as a sequence.
  virtual void add(uint64_t index, TrainBatch& batch) const = 0;
};

enum class Order {
  sequential,
  shuffled,  ///< every window once in each epoch, in another order in each
  magic,     ///< RWKV-LM's cubic order (magic_prime.h)
};

struct WindowOptions {
  int64_t context = 1024;  ///< tokens of each sample; its last target is the token behind them
  Order order = Order::shuffled;
  uint64_t seed = 0;
  int64_t vocab = 0;             ///< tokens must be below it
  bool document_resets = false;  ///< WKV states are reset where a document begins
};

/// Appends a sequence: a row for each token but the last, which is a target only. `marks`: of each token, or
/// none.
void add_sequence(std::span<const TokenId> tokens, std::span<const TokenMark> marks, TrainBatch& batch);

/// Windows of `context` tokens of the stream of all documents, with the weights and resets that the file has.
/// Errors: fewer tokens than one window; with the magic order, too few for a prime; with document resets,
/// documents that do not lie one after another.
std::unique_ptr<TrainingData> make_token_windows(TokenFile file, const WindowOptions& options);

/// The place of `index` < count in a pseudorandom order of 0 .. count − 1 that `key` chooses: a Feistel
/// network of four rounds on the next power of four, walked until it lands inside (Black and Rogaway 2002,
/// "Ciphers with arbitrary finite domains"). Takes no memory.
uint64_t shuffled_index(uint64_t index, uint64_t count, uint64_t key);

}  // namespace rwkvx
