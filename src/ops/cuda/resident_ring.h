#pragma once

#include <ring_instructions.h>  // of native/ or of tests/emulated_gpu, by the include path

#include "ops/cuda/kernel.h"
#include "ops/cuda/resident.h"

/// The ring of slots through which weights come, and who has which rows. The warp that fetches and those that
/// compute go through a block's rows in one order, each by its own Cursor. All threads go through these
/// computations for a few rows at a time: nothing here divides.
namespace rwkvx::cuda::resident {

/// A block's shared memory.
struct Block {
  unsigned char* memory;
  const Layout& at;
  int index, count;  // of the grid's blocks

  template <typename T>
  __device__ __forceinline__ T* part(int32_t offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  __device__ __forceinline__ unsigned char* slot(int i) const { return memory + i * at.slot_bytes; }
  __device__ __forceinline__ SharedBarrier* full(int i) const { return part<SharedBarrier>(at.full) + i; }
  __device__ __forceinline__ SharedBarrier* empty(int i) const { return part<SharedBarrier>(at.empty) + i; }
  /// The first that is this block's, or with 1 for `next` the next block's.
  __device__ __forceinline__ int first_of(const Share& share, int next = 0) const {
    const int i = index + next;
    return i * share.each + min(i, share.extra);
  }
};

struct Cursor {
  int slot = 0;
  uint32_t parity = 0;  // of the phase in which the slot is filled
  /// n: as many as there are slots at most.
  __device__ __forceinline__ Cursor ahead(int n, int slots) const {
    const int to = slot + n;
    return to < slots ? Cursor{to, parity} : Cursor{to - slots, parity ^ 1};
  }
};

/// Calls each(job, row, rows) for the tiles of this block's share of the group's rows.
template <typename Each>
__device__ __forceinline__ void for_tiles(const Block& block, const Instruction& op, const Group& group,
                                          const Each& each) {
  int first = block.first_of(group.share), end = block.first_of(group.share, 1);  // behind the job's first row
  for (int j = group.first_job; end > 0 && j < group.first_job + group.jobs; ++j) {
    const Job& job = op.jobs[j];
    const int out = job.out, stop = min(end, out);
    for (int row = max(first, 0); row < stop; row += kTile) each(job, row, min(kTile, stop - row));
    first -= out;
    end -= out;
  }
}
__device__ __forceinline__ int slots_of_tile(const Group& group, int rows) {
  return (rows + (1 << group.log_rows_of_slot) - 1) >> group.log_rows_of_slot;  // for each piece
}

/// Calls each(head) for the heads of this block: as far apart as there are blocks for.
template <typename Each>
__device__ __forceinline__ void for_heads(const Block& block, int heads, const Each& each) {
  if (heads > block.count) {
    for (int h = block.index; h < heads; h += block.count) each(h);
    return;
  }
  const int apart = block.count / heads, h = block.index / apart;
  if (h * apart == block.index && h < heads) each(h);
}

/// Which inputs the block's rows of an instruction need.
__device__ __forceinline__ uint32_t inputs_needed(const Block& block, const Instruction& op) {
  uint32_t needed = 0;
  if (op.kind == Kind::time_mix) {
    for_heads(block, op.heads, [&](int) { needed = (1u << op.input_count) - 1; });
    return needed;
  }
  for (int g = 0; g < op.group_count; ++g) {
    const Group& group = op.groups[g];
    int first = block.first_of(group.share), end = block.first_of(group.share, 1);
    for (int j = group.first_job; end > 0 && j < group.first_job + group.jobs; ++j) {
      if (max(first, 0) < min(end, op.jobs[j].out)) needed |= 1u << op.jobs[j].input;
      first -= op.jobs[j].out;
      end -= op.jobs[j].out;
    }
  }
  return needed;
}
/// Where input `i` lies among those needed.
__device__ __forceinline__ int place_of_input(uint32_t needed, int i) {
  return __popc(needed & ((1u << i) - 1));
}

/// What of a head comes in one slot behind each other, [64] each: the order of HeadStep's parameters.
inline constexpr int kHeadParameters = 8;

/// One quad of the copy of an instruction for each thread.
inline constexpr int kInstructionQuads = sizeof(Instruction) / 16;

}  // namespace rwkvx::cuda::resident
