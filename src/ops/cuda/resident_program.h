#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "ops/cuda/resident.h"
#include "ops/ops.h"

namespace rwkvx::cuda {

/// Turns operations on one row into a resident program: told of them one after another instead of doing them.
/// What is not for it throws CannotRecord: more rows, other types, other orders than those of the model's
/// blocks. Results that only the next operation reads (mixed inputs, hidden values, low-rank outputs) are not
/// written to memory.
class ResidentComposer {
 public:
  explicit ResidentComposer(Gpu& gpu);

  void layer_norm(ConstView x, ConstView gain, ConstView bias, float eps, View y);
  void norm_shift(const NormShift& call);
  void linear(std::span<const LinearCall> calls);
  void wkv7_step(const Wkv7Step& call);

  std::shared_ptr<resident::Program> finish();

 private:
  /// Inputs that products may take: those of a norm, or rows in memory.
  struct Inputs {
    resident::Instruction norm{};  // its part of an instruction
    std::vector<const void*> at;
  };
  void start_norm(ConstView x, ConstView gain, ConstView bias, float eps, std::span<const View> y);
  /// Makes an instruction of products that wait for what comes after them.
  void flush();
  resident::Instruction begin(std::span<const LinearCall> calls);
  /// by_type: one group for all matrices of a type and width; otherwise one for each.
  void add_groups(resident::Instruction& op, std::span<const LinearCall> calls, bool by_type);
  void channel_mix(const LinearCall& key, const LinearCall& value);
  void append(resident::Instruction op);
  /// Where what the last instruction writes need not be waited for: the next one finds it tagged.
  bool tag_last(resident::Instruction& op);
  uint64_t* tagged_room(int64_t elements);

  /// Of memory whose contents exist in no other place than an instruction's.
  struct Range {
    const std::byte *begin, *end;
  };
  void unwritten(const ConstView& view);
  void written(const ConstView& view);
  void require_written(const ConstView& view) const;

  Gpu& gpu_;
  std::vector<resident::Instruction> list_;
  std::optional<Inputs> norm_;
  std::vector<LinearCall> held_;  // products that may become one with what follows
  std::vector<Range> unwritten_;
  int64_t parts_ = 0;  // floats of a block
  int64_t tagged_ = 0, most_tagged_ = 0;  // words of an instruction's inputs, of all instructions'
  int norms_ = 0;                         // since the last meeting
};

}  // namespace rwkvx::cuda
