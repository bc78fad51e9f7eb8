#pragma once

#include <memory>
#include <memory_resource>
#include <span>
#include <vector>

#include "base/stack_memory.h"
#include "model/batch.h"
#include "model/state.h"
#include "model/weights.h"
#include "tensor/arena.h"

namespace rwkvx {

/// Tokens to append to a sequence.
struct SequenceInput {
  std::span<const int32_t> tokens;  ///< at least one
  State* state = nullptr;           ///< continued; each sequence of a call has its own
};

enum class LogitsOf { none, last, all };

struct AttentionRows;

/// An RWKV-7 or RWKV-X model on one backend. Immutable: states and work space belong to the caller, so that
/// one model serves many sequences. Calls on one Ops instance must not overlap.
class Model {
 public:
  /// `kv` is how its states store keys and values. Errors: those of LoadedWeights and KvOptions::check.
  Model(std::shared_ptr<const Checkpoint> checkpoint, std::shared_ptr<Ops> ops, KvOptions kv = {});

  const ModelConfig& config() const { return weights_.config(); }
  const Checkpoint& checkpoint() const { return weights_.checkpoint(); }
  Ops& ops() const { return *ops_; }
  uint64_t fingerprint() const { return weights_.fingerprint(); }
  /// As given; of an RWKV-X with the type of keys and values.
  const KvOptions& kv_options() const { return kv_; }
  /// Errors: those of State.
  State new_state() const { return State(config(), kv_, *ops_); }

  /// Consumes the tokens of every sequence, all in one pass over the weights. Any split of a sequence into
  /// calls gives the same logits. logits: [S, V] for `last`, [R, V] for `all` (rows of sequence 0 first),
  /// real; may be empty for `none`. Errors: a token id outside the vocabulary (its position is named), no
  /// room for their keys; states are then untouched.
  void forward(std::span<const SequenceInput> inputs, LogitsOf which, View logits, Arena& arena) const;

 private:
  /// What all blocks of a forward pass work on.
  struct Pass {
    const Batch& batch;
    std::span<const SequenceInput> inputs;
    View v_first, x;  // [R, C] real
    LogitsOf which;
    View logits;
    Arena& arena;
  };
  using PassMemory = StackMemory<2048>;  ///< for lists of sequences: a token allocates nothing
  void run_block(const BlockRef& block, const Pass& pass) const;
  /// The same for a pass of one row for each sequence: all work between two attentions is the same for every
  /// token, and done as a whole.
  void run_steps(const Pass& pass) const;
  void replay(size_t first, size_t last, const Pass& pass, const AttentionRows& rows) const;
  static std::pmr::vector<KvStore*> stores(const BlockRef& block, const Pass& pass, PassMemory& memory);
  /// A sparse block's.
  static std::pmr::vector<void*> shifts(const BlockRef& block, const Pass& pass, PassMemory& memory);
  int64_t top_k() const;

  /// What follows the blocks, for the rows whose logits are wanted.
  void head(const Pass& pass) const;

  std::shared_ptr<Ops> ops_;
  const uint64_t id_;  // of this model among all of the process
  std::vector<BlockRef> order_;
  KvOptions kv_;
  LoadedWeights weights_;
};

}  // namespace rwkvx
