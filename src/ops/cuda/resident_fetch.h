#pragma once

#include "ops/cuda/resident_ring.h"

/// What the fetching warp of a block does.
namespace rwkvx::cuda::resident {

class Fetcher {
 public:
  __device__ __forceinline__ Fetcher(const Block& block, int lane) : block_(block), lane_(lane) {}

  __device__ __forceinline__ void run(const Instruction& op) {
    if (op.kind != Kind::total && op.source != Source::rows) vectors(op);
    switch (op.kind) {
      case Kind::products:
        for (int g = 0; g < op.group_count; ++g) {
          const Group& group = op.groups[g];
          for_tiles(block_, op, group, [&](const Job& job, int row, int rows) { tile(group, job, row, rows); });
        }
        return;
      case Kind::channel_mix:
        return channel_mix(op);
      case Kind::time_mix:
        return for_heads(block_, op.heads, [&](int head) { time_mix(op, head); });
      case Kind::total:
        return;
    }
  }

 private:
  /// Waits until the slot is free.
  __device__ __forceinline__ void begin(const Cursor& to, uint32_t bytes) {
    wait(block_.empty(to.slot), to.parity ^ 1);
    arrive_expecting(block_.full(to.slot), bytes);
  }
  __device__ __forceinline__ void advance(int slots) { cursor_ = cursor_.ahead(slots, block_.at.slots); }

  /// Bytes in pieces, each lane one.
  __device__ __forceinline__ void pieces(const void* from, int bytes, int piece, int slots) {
    if (lane_ < slots) {
      const Cursor to = cursor_.ahead(lane_, block_.at.slots);
      const int at = lane_ * piece;
      const auto count = static_cast<uint32_t>(min(piece, bytes - at));
      begin(to, count);
      copy_bulk(block_.slot(to.slot), static_cast<const uint8_t*>(from) + at, count, block_.full(to.slot));
    }
    __syncwarp();
    advance(slots);
  }

  /// What norms read beside x.
  __device__ __forceinline__ void vectors(const Instruction& op) {
    const uint32_t needed = inputs_needed(block_, op);
    const int bytes = 4 * op.width;
    const auto fetch = [&](const float* from) { pieces(from, bytes, op.vector_piece, op.vector_slots); };
    fetch(op.gain);
    fetch(op.bias);
    if (op.source != Source::norm_shift) return;
    fetch(op.last);
    for (int m = 0; m < op.input_count; ++m) {
      if ((needed >> m & 1) != 0) fetch(op.mix + m * op.width);
    }
  }

  /// Each lane a slot.
  __device__ __forceinline__ void tile(const Group& group, const Job& job, int row, int rows) {
    const int slots = slots_of_tile(group, rows), log = group.log_rows_of_slot;
    for (int piece = 0; piece < group.pieces; ++piece) {
      if (lane_ < slots) {
        const int first = row + (lane_ << log), count = min(1 << log, row + rows - first);
        const bool last = piece + 1 == group.pieces;
        const auto bytes = static_cast<uint32_t>(count * (last ? group.last_bytes : group.row_bytes));
        const auto scales = static_cast<uint32_t>(count * (last ? group.last_scales : group.scales_bytes));
        const Cursor to = cursor_.ahead(lane_, block_.at.slots);
        unsigned char* const slot = block_.slot(to.slot);
        begin(to, bytes + scales);
        copy_bulk(slot, job.body + static_cast<int64_t>(first) * group.row_stride + piece * group.row_bytes,
                  bytes, block_.full(to.slot));
        if (scales > 0) {
          copy_bulk(slot + (group.row_bytes << log),
                    reinterpret_cast<const uint8_t*>(job.scales) +
                        static_cast<int64_t>(first) * group.scales_stride + piece * group.scales_bytes,
                    scales, block_.full(to.slot));
        }
      }
      __syncwarp();
      advance(slots);
    }
  }

  /// The value rows of a tile follow the key rows of the next one: of hidden values that are zero none.
  __device__ __forceinline__ void channel_mix(const Instruction& op) {
    const Group& group = op.groups[0];
    int last = -1;  // the tile's first row
    for_tiles(block_, op, group, [&](const Job& job, int row, int rows) {
      tile(group, job, row, rows);
      if (last >= 0) values(op, last);
      last = row;
    });
    if (last >= 0) values(op, last);
  }
  __device__ __forceinline__ void values(const Instruction& op, int row) {
    wait(block_.part<SharedBarrier>(block_.at.hidden_ready), hidden_tiles_ & 1);
    const float* const hidden = block_.part<float>(block_.at.hidden) + (hidden_tiles_ & 3) * kTile;
    ++hidden_tiles_;
    const bool wanted = lane_ < kTile && hidden[lane_ % kTile] != 0.0f;
    const uint32_t all = __ballot_sync(kAllLanes, wanted);
    const int row_bytes = 2 * op.out, nth = __popc(all & ((1u << lane_) - 1));
    for (int piece = 0; piece < op.value_pieces; ++piece) {
      if (wanted) {
        const int from = piece * op.value_piece;
        const auto bytes = static_cast<uint32_t>(min(op.value_piece, row_bytes - from));
        const Cursor to = cursor_.ahead(nth * op.value_pieces + piece, block_.at.slots);
        begin(to, bytes);
        copy_bulk(block_.slot(to.slot), op.value + static_cast<int64_t>(row + lane_) * row_bytes + from, bytes,
                  block_.full(to.slot));
      }
      __syncwarp();
    }
    advance(__popc(all) * op.value_pieces);
  }

  __device__ __forceinline__ void time_mix(const Instruction& op, int head) {
    if (lane_ == 0) {
      constexpr uint32_t kBytes = kHead * sizeof(float);
      const HeadStep& p = op.first_head;
      begin(cursor_, kHeadParameters * kBytes);
      unsigned char* to = block_.slot(cursor_.slot);
      // The first block has no v0, and does not look at it.
      const float* const all[] = {p.w0,  p.a0,   p.k_k,  p.k_a,
                                  p.r_k, p.gain, p.bias, p.v0 != nullptr ? p.v0 : p.w0};
      for (const float* from : all) {
        copy_bulk(to, from + head * kHead, kBytes, block_.full(cursor_.slot));
        to += kBytes;
      }
    }
    __syncwarp();
    advance(1);
    pieces(op.first_head.before + static_cast<int64_t>(head) * kHead * kHead, kHead * kHead * 4, op.state_piece,
           op.state_slots);
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      for (int row = 0; row < kHead; row += kTile) {
        tile(group, op.jobs[group.first_job], head * kHead + row, kTile);
      }
    }
  }

  const Block& block_;
  int lane_;
  Cursor cursor_;
  uint32_t hidden_tiles_ = 0;
};

}  // namespace rwkvx::cuda::resident
