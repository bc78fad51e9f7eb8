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
  /// The next tray, when it is free: lane l calls copy(slot, barrier) for slot l, which gets `bytes`; none
  /// where that is 0.
  template <typename Copy>
  __device__ __forceinline__ void tray(uint32_t bytes, const Copy& copy) {
    uint32_t all = lane_ < kSlotsOfTray ? bytes : 0;
    static_assert(kSlotsOfTray == 4);
    all += __shfl_xor_sync(kAllLanes, all, 1);
    all += __shfl_xor_sync(kAllLanes, all, 2);
    SharedBarrier* const full = block_.full(cursor_.tray);
    if (lane_ == 0) {
      if (under_way_ == block_.at.under_way) wait(block_.full(landing_.tray), landing_.parity);
      wait(block_.empty(cursor_.tray), cursor_.parity ^ 1);
      arrive_expecting(full, all);
      set_count(block_.part<uint32_t>(block_.at.fetched), cursor_.before + 1);
    }
    __syncwarp();
    if (under_way_ == block_.at.under_way) {
      landing_ = block_.ahead(landing_, 1);
    } else {
      ++under_way_;
    }
    if (lane_ < kSlotsOfTray && bytes > 0) copy(block_.slot(cursor_, lane_), full);
    cursor_ = block_.ahead(cursor_, 1);
  }

  /// What norms read beside x.
  __device__ __forceinline__ void vectors(const Instruction& op) {
    const uint32_t needed = inputs_needed(block_, op);
    const int bytes = 4 * op.width, each = op.vector_slots;
    const int slots = (op.source == Source::norm_shift ? 3 + __popc(needed) : 2) * each;
    for (int base = 0; base < slots; base += kSlotsOfTray) {
      int vector = 0, piece = base + lane_ % kSlotsOfTray;
      const bool any = piece < slots;
      for (; piece >= each; piece -= each) ++vector;
      const float* from = vector == 0 ? op.gain : (vector == 1 ? op.bias : op.last);
      if (any && vector > 2) {
        uint32_t left = needed;
        for (int i = 3; i < vector; ++i) left &= left - 1;
        from = op.mix + (__ffs(static_cast<int>(left)) - 1) * op.width;
      }
      const int at = piece * op.vector_piece;
      const uint32_t count = any ? min(op.vector_piece, bytes - at) : 0;
      tray(count, [&](void* slot, SharedBarrier* full) {
        copy_bulk(slot, reinterpret_cast<const uint8_t*>(from) + at, count, full);
      });
    }
  }

  __device__ __forceinline__ void tile(const Group& group, const Job& job, int row, int rows) {
    const int log = group.log_rows_of_slot, of_tray = kSlotsOfTray << log;
    for (int piece = 0; piece < group.pieces; ++piece) {
      const bool last = piece + 1 == group.pieces;
      const int body = last ? group.last_bytes : group.row_bytes,
                scales = last ? group.last_scales : group.scales_bytes;
      const uint8_t* from = job.body + piece * group.row_bytes;
      const uint8_t* from_scales = reinterpret_cast<const uint8_t*>(job.scales) + piece * group.scales_bytes;
      for (int base = 0; base < rows; base += of_tray) {
        const int first = base + (lane_ << log), count = max(0, min(1 << log, rows - first));
        tray(static_cast<uint32_t>(count * (body + scales)), [&](unsigned char* slot, SharedBarrier* full) {
          const int64_t which = row + first;
          copy_bulk(slot, from + which * group.row_stride, static_cast<uint32_t>(count * body), full);
          if (scales > 0) {
            copy_bulk(slot + (group.row_bytes << log), from_scales + which * group.scales_stride,
                      static_cast<uint32_t>(count * scales), full);
          }
        });
      }
    }
  }

  /// The value rows of some tiles follow their key rows: of hidden values that are zero none.
  __device__ __forceinline__ void channel_mix(const Instruction& op) {
    const Group& group = op.groups[0];
    int first = 0, tiles = 0;  // whose values are to come: the first one's first row
    const auto all_values = [&] {
      for (int t = 0; t < tiles; ++t) values(op, first + t * kTile);
      tiles = 0;
    };
    for_tiles(block_, op, group, [&](const Job& job, int row, int rows) {
      if (tiles == kHiddenTiles) all_values();
      if (tiles++ == 0) first = row;
      tile(group, job, row, rows);
    });
    all_values();
  }
  __device__ __forceinline__ void values(const Instruction& op, int row) {
    const int which_tile = hidden_tiles_ % kHiddenTiles;
    if (lane_ == 0) {
      wait(block_.part<SharedBarrier>(block_.at.hidden_ready) + which_tile, hidden_tiles_ / kHiddenTiles & 1);
    }
    __syncwarp();
    const Hidden& hidden = block_.part<Hidden>(block_.at.hidden)[which_tile];
    ++hidden_tiles_;
    const int row_bytes = 2 * op.out, pieces = op.value_pieces, slots = hidden.count * pieces;
    for (int base = 0; base < slots; base += kSlotsOfTray) {
      int nth = 0, piece = base + lane_ % kSlotsOfTray;
      const bool any = piece < slots;
      for (; piece >= pieces; piece -= pieces) ++nth;
      const int at = piece * op.value_piece;
      const uint32_t bytes = any ? min(op.value_piece, row_bytes - at) : 0;
      const int64_t which = row + (any ? hidden.rows[nth] : 0);
      tray(bytes, [&](void* slot, SharedBarrier* full) {
        copy_bulk(slot, op.value + which * row_bytes + at, bytes, full);
      });
    }
  }

  __device__ __forceinline__ void time_mix(const Instruction& op, int head) {
    constexpr uint32_t kBytes = kHead * sizeof(float);
    constexpr int kState = kHead * kHead * static_cast<int>(sizeof(float));
    const HeadStep& p = op.first_head;
    const auto* state = reinterpret_cast<const uint8_t*>(p.before) + static_cast<int64_t>(head) * kState;
    for (int base = 0; base < 1 + op.state_slots; base += kSlotsOfTray) {
      const int slot = base + lane_ % kSlotsOfTray, at = (slot - 1) * op.state_piece;
      uint32_t bytes = kHeadParameters * kBytes;
      if (slot > 0) bytes = slot <= op.state_slots ? min(op.state_piece, kState - at) : 0;
      tray(bytes, [&](unsigned char* to, SharedBarrier* full) {
        if (slot > 0) return copy_bulk(to, state + at, bytes, full);
        // The first block has no v0, and does not look at it.
        const float* const all[] = {p.w0,  p.a0,   p.k_k,  p.k_a,
                                    p.r_k, p.gain, p.bias, p.v0 != nullptr ? p.v0 : p.w0};
        for (const float* from : all) {
          copy_bulk(to, from + head * kHead, kBytes, full);
          to += kBytes;
        }
      });
    }
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      tile(group, op.jobs[group.first_job], head * kHead, kHead);
    }
  }

  const Block& block_;
  int lane_;
  Cursor cursor_, landing_;  // landing_: the first tray that may be on its way
  int under_way_ = 0;        // trays from there to cursor_
  uint32_t hidden_tiles_ = 0;
};

}  // namespace rwkvx::cuda::resident
