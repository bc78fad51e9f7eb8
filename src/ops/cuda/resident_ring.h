#pragma once

#include <ring_instructions.h>  // of native/ or of tests/emulated_gpu, by the include path

#include "ops/cuda/kernel.h"
#include "ops/cuda/resident.h"

/// The ring of trays through which weights come, and who has which rows. The warp that fetches and those that
/// compute go through a block's rows in one order, each by its own Cursor. All of this is done for a few rows
/// at a time, so that a hundred instructions are too many; nothing here divides.
namespace rwkvx::cuda::resident {

struct Cursor {
  int tray = 0;
  uint32_t parity = 0;  // of the phase in which the tray is filled
  uint32_t before = 0;  // trays that came before, in all
};

/// A block's shared memory.
struct Block {
  unsigned char* memory;
  const Layout& at;
  int index, count;  // of the grid's blocks

  template <typename T>
  __device__ __forceinline__ T* part(int32_t offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  /// n: as many as there are trays at most.
  __device__ __forceinline__ Cursor ahead(const Cursor& from, int n) const {
    const int to = from.tray + n;
    const uint32_t before = from.before + static_cast<uint32_t>(n);
    return to < at.trays ? Cursor{to, from.parity, before} : Cursor{to - at.trays, from.parity ^ 1, before};
  }
  /// Slot i of the trays from `from` on.
  __device__ __forceinline__ unsigned char* slot(const Cursor& from, int i) const {
    const int tray = ahead(from, i / kSlotsOfTray).tray;
    return memory + tray * at.tray_bytes + i % kSlotsOfTray * at.slot_bytes;
  }
  __device__ __forceinline__ SharedBarrier* full(int tray) const { return part<SharedBarrier>(at.full) + tray; }
  __device__ __forceinline__ SharedBarrier* empty(int tray) const {
    return part<SharedBarrier>(at.empty) + tray;
  }
  /// The first that is this block's, or with 1 for `next` the next block's.
  __device__ __forceinline__ int first_of(const Share& share, int next = 0) const {
    const int i = index + next;
    return i * share.each + min(i, share.extra);
  }
};

/// The hidden values of a tile that are not zero.
struct Hidden {
  float values[kTile + 4];  // behind the last zeros
  int32_t rows[kTile];  // of the tile
  int32_t count, unused[7];
};
static_assert(sizeof(Hidden) % 16 == 0);
/// Key rows of so many tiles come before their value rows.
inline constexpr int kHiddenTiles = 16;

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
/// Of n slots.
__device__ __forceinline__ int trays_of(int slots) { return (slots + kSlotsOfTray - 1) / kSlotsOfTray; }
/// Of a piece of each row of a tile.
__device__ __forceinline__ int trays_of_tile(const Group& group, int rows) {
  const int log = group.log_rows_of_slot;
  return trays_of((rows + (1 << log) - 1) >> log);
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
