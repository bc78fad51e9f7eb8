#pragma once

#include "ops/cuda/activation.h"
#include "ops/cuda/few_rows_units.h"
#include "ops/cuda/resident_ring.h"
#include "ops/cuda/wkv7_step.h"

/// What the computing warps of a block do, all together.
namespace rwkvx::cuda::resident {

/// A row of weights in a slot.
struct SlotRow {
  const uint8_t* body;
  const uint16_t* scales;
  template <typename T>
  __device__ __forceinline__ static void once(T& v, const void* p, bool valid) {
    if (valid) v = *static_cast<const T*>(p);
  }
  template <typename T>
  __device__ __forceinline__ static void reused(T& v, const void* p, bool valid) {
    once(v, p, valid);
  }
};

/// Adds the products of 16 rows with x, [elements] bfloat16, over every kStride-th step of k from `first`, to
/// column 0 of `sums`, two fragments of mma_bf16() whose sum counts: the lane has whole units of rows g and
/// g + 8. A step is 4 units, and elements are a multiple of it.
template <typename Unit, int kStride>
__device__ __forceinline__ void add_products(const SlotRow (&rows)[2], const unsigned char* x, int elements,
                                             int first, float (&sums)[2][4]) {
  constexpr int kTogether = Unit::kElements == 8 ? 5 : 1;
  const int units = elements / Unit::kElements;
#pragma unroll kTogether
  for (int unit = 4 * first + static_cast<int>(threadIdx.x) % 4; unit < units; unit += 4 * kStride) {
    Unit w[2];
    w[0].load(rows[0], unit, true);
    w[1].load(rows[1], unit, true);
    const auto scales0 = w[0].scales(unit), scales1 = w[1].scales(unit);
#pragma unroll
    for (int group = 0; group < Unit::kElements / 8; ++group) {
      const uint4 v =
          in_group_order<Unit::kMixed>(*reinterpret_cast<const uint4*>(x + 2 * Unit::at(unit, group)));
      uint32_t w0[4], w1[4];
      w[0].pairs(scales0, unit, group, w0);
      w[1].pairs(scales1, unit, group, w1);
      mma_bf16(sums[0], {w0[0], w1[0], w0[1], w1[1]}, {v.x, v.y});
      mma_bf16(sums[1], {w0[2], w1[2], w0[3], w1[3]}, {v.z, v.w});
    }
  }
}
template <int kStride>
__device__ __forceinline__ void add_products(DType type, const SlotRow (&rows)[2], const unsigned char* x,
                                             int elements, int first, float (&sums)[2][4]) {
  switch (type) {
    case DType::q8_0:
      return add_products<TensorQ8_0, kStride>(rows, x, elements, first, sums);
    case DType::q4_0:
      return add_products<TensorQ4_0, kStride>(rows, x, elements, first, sums);
    case DType::q4_k:
      return add_products<TensorQ4_K, kStride>(rows, x, elements, first, sums);
    case DType::q5_k:
      return add_products<TensorQ5_K, kStride>(rows, x, elements, first, sums);
    default:
      return add_products<TensorBf16, kStride>(rows, x, elements, first, sums);
  }
}

class Computer {
 public:
  __device__ __forceinline__ explicit Computer(const Block& block)
      : block_(block),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        warp_(thread_ / 32) {}

  static __device__ __forceinline__ void meet() { sync_some<1, kComputing>(); }

  /// What can be done before the grid has met.
  __device__ __forceinline__ void prepare(const Instruction& op) {
    if (op.kind == Kind::total) return;
    needed_ = inputs_needed(block_, op);
    input_pitch_ = op.input_pitch;
    if (op.source != Source::rows) wait_for(trays_of(vectors(op) * op.vector_slots));
  }
  /// After a meeting of the grid.
  __device__ __forceinline__ void run(const Instruction& op) {
    finish();  // all have read what it replaces
    if (op.kind == Kind::total) return total(op);
    if (op.source == Source::rows) {
      copy_inputs(op);
    } else {
      norm_inputs(op);
    }
    meet();
    switch (op.kind) {
      case Kind::products:
        return products(op);
      case Kind::channel_mix:
        return channel_mix(op);
      default:
        return for_heads(block_, op.heads, [&](int head) { time_mix(op, head); });
    }
  }
  /// What the last instruction left to be done after a meeting.
  __device__ __forceinline__ void finish() {
    if (kept_to_ != nullptr) store4(kept_to_, kept_);
    kept_to_ = nullptr;
  }

 private:
  __device__ __forceinline__ unsigned char* input(int i) const {
    return block_.part<unsigned char>(block_.at.inputs) + place_of_input(needed_, i) * input_pitch_;
  }
  __device__ __forceinline__ Cursor ahead(int n) const { return block_.ahead(cursor_, n); }
  /// Until n trays from the `first`th on are filled, n ≤ 32.
  __device__ __forceinline__ void wait_for(int n, int first = 0) const {
    if (lane_ < n) {
      const Cursor at = ahead(first + lane_);
      wait(block_.full(at.tray), at.parity);
    }
    __syncwarp();
  }
  /// This warp needs n trays from the `first`th on no more.
  __device__ __forceinline__ void release(int n, int first = 0) const {
    __syncwarp();
    if (lane_ < n) arrive(block_.empty(ahead(first + lane_).tray));
  }
  /// What a norm reads beside x: gain, bias, the last row, and the shares of the inputs needed.
  __device__ __forceinline__ int vectors(const Instruction& op) const {
    return op.source == Source::norm_shift ? 3 + __popc(needed_) : 2;
  }

  __device__ __forceinline__ void copy_inputs(const Instruction& op) const {
    for (int i = 0; i < op.input_count; ++i) {
      if ((needed_ >> i & 1) == 0) continue;
      const auto* from = static_cast<const uint4*>(op.inputs[i]);
      auto* to = reinterpret_cast<uint4*>(input(i));
      for (int q = thread_; q < op.input_elements[i] / 8; q += kComputing) to[q] = from[q];
    }
  }

  __device__ __forceinline__ float sum_of_all(float x, int which) const {
    float* const scratch = block_.part<float>(block_.at.scratch) + which * kWarps;
    x = warp_sum(x);
    if (lane_ == 0) scratch[warp_] = x;
    meet();
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += scratch[w];
    return sum;
  }

  /// As norm_shift() and layer_norm(). Each block makes what its own rows need; one of them, a meeting later,
  /// what is kept for the next token.
  __device__ __forceinline__ void norm_inputs(const Instruction& op) {
    const int quads = op.width / 4;
    float4 n[kMostQuads];
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      const int q = thread_ + i * kComputing;
      n[i] = q < quads ? load4(op.x + 4 * q) : make_float4(0, 0, 0, 0);
    }
    // Where this thread's quads of a vector lie, in its slots.
    int slot[kMostQuads], at[kMostQuads];
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      at[i] = 16 * min(thread_ + i * kComputing, quads - 1);
      slot[i] = 0;
      for (; at[i] >= op.vector_piece; at[i] -= op.vector_piece) ++slot[i];
    }
    const auto vector = [&](int which, int i) {
      const unsigned char* const from = block_.slot(cursor_, which * op.vector_slots + slot[i]);
      return *reinterpret_cast<const float4*>(from + at[i]);
    };
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) sum += (n[i].x + n[i].y) + (n[i].z + n[i].w);
    const float width = static_cast<float>(op.width);
    const float mean = sum_of_all(sum, 0) / width;
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      if (thread_ + i * kComputing >= quads) continue;
      n[i] = make_float4(n[i].x - mean, n[i].y - mean, n[i].z - mean, n[i].w - mean);
      squares += (n[i].x * n[i].x + n[i].y * n[i].y) + (n[i].z * n[i].z + n[i].w * n[i].w);
    }
    const float scale = 1.0f / sqrtf(sum_of_all(squares, 1) / width + op.eps);
    const bool shift = op.source == Source::norm_shift;
    const int first = block_.first_of(op.quads), end = block_.first_of(op.quads, 1);
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      const int q = thread_ + i * kComputing;
      if (q >= quads) continue;
      const float4 gain = vector(0, i), bias = vector(1, i);
      n[i] = make_float4(n[i].x * scale * gain.x + bias.x, n[i].y * scale * gain.y + bias.y,
                         n[i].z * scale * gain.z + bias.z, n[i].w * scale * gain.w + bias.w);
      if (!shift) {
        if (needed_ != 0) store4(reinterpret_cast<Bf16*>(input(0)) + 4 * q, n[i]);
        continue;
      }
      if (q >= first && q < end) {
        kept_ = n[i];
        kept_to_ = op.last + 4 * q;
      }
      const float4 last = vector(2, i);
      const float4 change =
          make_float4(last.x - n[i].x, last.y - n[i].y, last.z - n[i].z, last.w - n[i].w);
      int place = 0;
      for (uint32_t left = needed_; left != 0; left &= left - 1, ++place) {
        const float4 share = vector(3 + place, i);
        auto* const to = reinterpret_cast<Bf16*>(block_.part<unsigned char>(block_.at.inputs) + place * input_pitch_);
        store4(to + 4 * q, make_float4(n[i].x + change.x * share.x, n[i].y + change.y * share.y,
                                       n[i].z + change.z * share.z, n[i].w + change.w * share.w));
      }
    }
    const int trays = trays_of(vectors(op) * op.vector_slots);
    release(trays);
    cursor_ = ahead(trays);
  }

  /// Row `row` of a tile, or a piece of it, in the trays from `from` on.
  __device__ __forceinline__ SlotRow row_of(const Group& group, const Cursor& from, int row) const {
    const int log = group.log_rows_of_slot, within = row & ((1 << log) - 1);
    const unsigned char* const slot = block_.slot(from, row >> log);
    return {slot + within * group.row_bytes,
            reinterpret_cast<const uint16_t*>(slot + (group.row_bytes << log) + within * group.scales_bytes)};
  }

  /// All warps together. One of them calls begin() before, and finish(sum) with the sum of row `lane` % 16.
  template <typename Begin, typename Finish>
  __device__ __forceinline__ void shared_tile(const Group& group, int rows, const unsigned char* x,
                                              const Begin& begin, const Finish& finish) {
    const bool finishes = warp_ == turn_ % kWarps;
    if (finishes) begin();
    const int trays = trays_of_tile(group, rows);
    const int row0 = min(lane_ / 4, rows - 1), row8 = min(lane_ / 4 + 8, rows - 1);
    float sums[2][4] = {};
    for (int piece = 0, left = group.in; piece < group.pieces; ++piece, left -= group.piece_elements) {
      wait_for(trays);
      const SlotRow both[2] = {row_of(group, cursor_, row0), row_of(group, cursor_, row8)};
      add_products<kWarps>(static_cast<DType>(group.type), both, x, min(left, group.piece_elements), warp_, sums);
      x += 2 * group.piece_elements;
      release(trays);
      cursor_ = ahead(trays);
    }
    float* const partials = block_.part<float>(block_.at.partials) + turn_ % 2 * kWarps * kTile;
    if (lane_ % 4 == 0) {
      partials[warp_ * kTile + lane_ / 4] = sums[0][0] + sums[1][0];
      partials[warp_ * kTile + lane_ / 4 + 8] = sums[0][2] + sums[1][2];
    }
    meet();  // two buffers: whoever writes the other one again has met those who read it
    if (finishes) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += partials[w * kTile + lane_ % kTile];
      finish(sum);
    }
    ++turn_;
  }

  __device__ __forceinline__ void products(const Instruction& op) {
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      for_tiles(block_, op, group, [&](const Job& job, int row, int rows) {
        const int output = row + lane_;
        const bool stores = lane_ < rows;
        float before = 0.0f;
        shared_tile(
            group, rows, input(job.input),
            [&] {
              if (stores && job.add) before = static_cast<const float*>(job.y)[output];
            },
            [&](float sum) {
              if (!stores) return;
              const float y = job.add ? before + sum : activate(static_cast<Activation>(job.activation), sum);
              if (job.y_bf16) {
                static_cast<Bf16*>(job.y)[output] = from_float<Bf16>(y);
              } else {
                static_cast<float*>(job.y)[output] = y;
              }
            });
      });
    }
  }

  static constexpr int kValuesTogether = 4;  // value rows

  /// Where this thread's columns of a value row lie: a slot and bytes within it.
  struct Columns {
    int slot[kMostSums], at[kMostSums];
    bool any[kMostSums];
    int warps;  // that have columns
  };

  __device__ __forceinline__ void channel_mix(const Instruction& op) {
    float sums[kMostSums][8] = {};
    Columns columns;
    columns.warps = min(kWarps, (op.out + 255) / 256);
#pragma unroll
    for (int i = 0; i < kMostSums; ++i) {
      const int column = 8 * (thread_ + i * kComputing);
      columns.any[i] = column < op.out;
      columns.at[i] = 2 * column;
      columns.slot[i] = 0;
      for (; columns.any[i] && columns.at[i] >= op.value_piece; columns.at[i] -= op.value_piece) {
        ++columns.slot[i];
      }
    }
    auto* const hidden = block_.part<Hidden>(block_.at.hidden);
    int tiles = 0;
    for_tiles(block_, op, op.groups[0], [&](const Job& job, int, int rows) {
      Hidden& here = hidden[hidden_tiles_ % kHiddenTiles];
      shared_tile(
          op.groups[0], rows, input(job.input), [] {},
          [&](float sum) {
            const float y = to_float(from_float<Bf16>(activate(static_cast<Activation>(job.activation), sum)));
            const bool wanted = lane_ < rows && y != 0.0f;
            const uint32_t all = __ballot_sync(kAllLanes, wanted);
            if (wanted) {
              const int at = __popc(all & ((1u << lane_) - 1));
              here.values[at] = y;
              here.rows[at] = lane_;
            }
            if (lane_ == 0) here.count = __popc(all);
            __syncwarp();
            if (lane_ == 0) arrive(block_.part<SharedBarrier>(block_.at.hidden_ready));
          });
      ++hidden_tiles_;
      if (tiles++ > 0) add_values(op, columns, hidden[(hidden_tiles_ - 2) % kHiddenTiles], sums);
    });
    if (tiles > 0) {
      meet();
      add_values(op, columns, hidden[(hidden_tiles_ - 1) % kHiddenTiles], sums);
    }
    float* const to = op.parts + static_cast<int64_t>(block_.index) * op.out;
#pragma unroll
    for (int i = 0; i < kMostSums; ++i) {
      if (!columns.any[i]) continue;
      float* const at = to + 8 * (thread_ + i * kComputing);
      store4(at, make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
      store4(at + 4, make_float4(sums[i][4], sums[i][5], sums[i][6], sums[i][7]));
    }
  }
  /// Of the hidden values that are not zero, a tray of value rows at a time.
  __device__ __forceinline__ void add_values(const Instruction& op, const Columns& columns,
                                             const Hidden& hidden, float (&sums)[kMostSums][8]) {
    const int pieces = op.value_pieces, slots = hidden.count * pieces, trays = trays_of(slots);
    wait_for(trays);
    if (warp_ < columns.warps) {
      int nth = 0;
      for (int left = hidden.count; left > 0; left -= kValuesTogether, nth += kValuesTogether) {
        const float4 h4 = *reinterpret_cast<const float4*>(hidden.values + nth);
        const float h[kValuesTogether] = {h4.x, h4.y, h4.z, h4.w};
#pragma unroll
        for (int i = 0; i < kMostSums; ++i) {
          if (!columns.any[i]) continue;
          uint4 words[kValuesTogether];
#pragma unroll
          for (int r = 0; r < kValuesTogether; ++r) {
            words[r] = kNoWords;
            if (r < left) {
              const unsigned char* const slot = block_.slot(cursor_, (nth + r) * pieces + columns.slot[i]);
              words[r] = *reinterpret_cast<const uint4*>(slot + columns.at[i]);
            }
          }
#pragma unroll
          for (int r = 0; r < kValuesTogether; ++r) {
            if (r >= left) break;
            float w[8];
            unpack8(words[r], Bf16(), w);
#pragma unroll
            for (int c = 0; c < 8; ++c) sums[i][c] = fmaf(h[r], w[c], sums[i][c]);
          }
        }
      }
    }
    release(trays);
    cursor_ = ahead(trays);
  }

  /// Each warp has tiles of the head's low-rank products.
  __device__ __forceinline__ void time_mix(const Instruction& op, int head) {
    constexpr int kTiles = kHead / kTile;  // of a product
    float(*const lora)[kHead] = block_.part<float[kHead]>(block_.at.lora);
    float(*const operands)[kHead] = block_.part<float[kHead]>(block_.at.operands);
    const int channel = head * kHead;
    const HeadStep& first = op.first_head;
    // Threads 64 i … have the i-th of these.
    const int which = thread_ / kHead;
    const float* const from = which == 0 ? first.r : (which == 1 ? first.k : (which == 2 ? first.v : first.v_first));
    const float operand = from[channel + thread_ % kHead];

    wait_for(op.head_trays);
#pragma unroll
    for (int i = 0; i < kMostGroups * kTiles / kWarps; ++i) {
      const int g = warp_ / kTiles + i * kWarps / kTiles, row = warp_ % kTiles * kTile + lane_ / 4;
      if (g >= op.group_count) break;
      const Group& group = op.groups[g];
      const Cursor at = ahead(op.lora_trays[g]);
      const SlotRow both[2] = {row_of(group, at, row), row_of(group, at, row + 8)};
      float sums[2][4] = {};
      add_products<TensorBf16, 1>(both, input(op.jobs[group.first_job].input), group.in, 0, sums);
      if (lane_ % 4 == 0) {
        lora[g][row] = sums[0][0] + sums[1][0];
        lora[g][row + 8] = sums[0][2] + sums[1][2];
      }
    }
    operands[which][thread_ % kHead] = operand;

    const auto* const p = reinterpret_cast<const float*>(block_.slot(cursor_, 0));
    // A group of 16 threads has 1024 bytes, which are in one slot.
    int at = thread_ / kStepLanes * 1024, slot = 1;
    for (; at >= op.state_piece; at -= op.state_piece) ++slot;
    const HeadStep step{.r = operands[0],
                        .decay = lora[0],
                        .rate = lora[1],
                        .value_gate = first.value_gate != nullptr ? lora[3] : nullptr,
                        .k = operands[1],
                        .v = operands[2],
                        .v_first = operands[3],
                        .g = lora[2],
                        .w0 = p,
                        .a0 = p + kHead,
                        .v0 = p + 7 * kHead,
                        .k_k = p + 2 * kHead,
                        .k_a = p + 3 * kHead,
                        .r_k = p + 4 * kHead,
                        .gain = p + 5 * kHead,
                        .bias = p + 6 * kHead,
                        .before = reinterpret_cast<const float*>(block_.slot(cursor_, slot) + at) -
                                  thread_ / kStepLanes * 256,
                        .state = first.state + static_cast<int64_t>(channel) * kHead,
                        .kept = 1.0f,
                        .eps = first.eps};
    meet();
    static_assert(kStepThreads == kComputing);
    step_head(step, thread_, *block_.part<StepShared>(block_.at.step),
              static_cast<Bf16*>(op.step_y) + channel, [] { meet(); });
    release(op.head_trays);
    cursor_ = ahead(op.head_trays);
  }

  /// A warp adds every kWarps-th part of 32 outputs.
  __device__ __forceinline__ void total(const Instruction& op) const {
    constexpr int kTogether = 18;
    float* const partials = block_.part<float>(block_.at.partials);  // [kWarps, 32]: both buffers
    const int first = block_.first_of(op.outputs), end = block_.first_of(op.outputs, 1);
    for (int base = first; base < end; base += 32) {
      const int output = base + lane_;
      const bool valid = output < end;
      const float before = warp_ == 0 && valid ? op.y[output] : 0.0f;
      float sum = 0.0f;
      for (int part = warp_; part < block_.count; part += kWarps * kTogether) {
        float x[kTogether];
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const int at = part + i * kWarps;
          x[i] = valid && at < block_.count ? op.parts[static_cast<int64_t>(at) * op.out + output] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) sum += x[i];
      }
      partials[warp_ * 32 + lane_] = sum;
      meet();
      if (warp_ == 0 && valid) {
        float all = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) all += partials[w * 32 + lane_];
        op.y[output] = before + all;
      }
      if (base + 32 < end) meet();
    }
  }

  const Block& block_;
  int thread_, lane_, warp_;
  Cursor cursor_;
  uint32_t needed_ = 0, hidden_tiles_ = 0;
  int input_pitch_ = 0, turn_ = 0;
  float4 kept_{};
  float* kept_to_ = nullptr;
};

}  // namespace rwkvx::cuda::resident
