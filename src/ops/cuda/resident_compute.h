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

/// Adds the products of 16 rows with x, [units] of bfloat16, over every `stride`th step of k from `first`, to
/// column 0 of `sums`, a fragment of mma_bf16(): the lane has whole units of rows g and g + 8.
template <typename Unit>
__device__ __forceinline__ void add_products(const SlotRow (&rows)[2], const unsigned char* x, int elements,
                                             int first, int stride, float (&sums)[4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  const int units = elements / Unit::kElements;
  constexpr int kTogether = Unit::kElements == 8 ? 5 : 1;
#pragma unroll kTogether
  for (int unit = 4 * first + t; unit < units + t; unit += 4 * stride) {
    const bool valid = unit < units;  // behind the end both count as zero
    Unit w[2];
    w[0].clear(), w[1].clear();
    w[0].load(rows[0], unit, valid);
    w[1].load(rows[1], unit, valid);
    const auto scales0 = w[0].scales(unit), scales1 = w[1].scales(unit);
#pragma unroll
    for (int group = 0; group < Unit::kElements / 8; ++group) {
      uint4 v = kNoWords;
      if (valid) v = *reinterpret_cast<const uint4*>(x + 2 * Unit::at(unit, group));
      v = in_group_order<Unit::kMixed>(v);
      uint32_t w0[4], w1[4];
      w[0].pairs(scales0, unit, group, w0);
      w[1].pairs(scales1, unit, group, w1);
      mma_bf16(sums, {w0[0], w1[0], w0[1], w1[1]}, {v.x, v.y});
      mma_bf16(sums, {w0[2], w1[2], w0[3], w1[3]}, {v.z, v.w});
    }
  }
}
__device__ __forceinline__ void add_products(DType type, const SlotRow (&rows)[2], const unsigned char* x,
                                             int elements, int first, int stride, float (&sums)[4]) {
  switch (type) {
    case DType::q8_0:
      return add_products<TensorQ8_0>(rows, x, elements, first, stride, sums);
    case DType::q4_0:
      return add_products<TensorQ4_0>(rows, x, elements, first, stride, sums);
    case DType::q4_k:
      return add_products<TensorQ4_K>(rows, x, elements, first, stride, sums);
    case DType::q5_k:
      return add_products<TensorQ5_K>(rows, x, elements, first, stride, sums);
    default:
      return add_products<TensorBf16>(rows, x, elements, first, stride, sums);
  }
}

class Computer {
 public:
  __device__ __forceinline__ explicit Computer(const Block& block)
      : block_(block),
        slots_(block.at.slots),
        thread_(static_cast<int>(threadIdx.x)),
        lane_(thread_ % 32),
        warp_(thread_ / 32) {}

  static __device__ __forceinline__ void meet() { sync_some<1, kComputing>(); }

  /// After a meeting of the grid.
  __device__ __forceinline__ void run(const Instruction& op) {
    finish();  // all have read what it replaces
    if (op.kind == Kind::total) return total(op);
    needed_ = inputs_needed(block_, op);
    input_pitch_ = op.input_pitch;
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
  __device__ __forceinline__ Cursor ahead(int n) const { return cursor_.ahead(n, slots_); }
  /// This warp needs the next n slots no more.
  __device__ __forceinline__ void release(Cursor from, int n) const {
    __syncwarp();
    if (lane_ < n) arrive(block_.empty(from.ahead(lane_, slots_).slot));
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

  /// A vector that comes in slots: this thread's quads.
  __device__ __forceinline__ void take_vector(const Instruction& op, float4 (&quads)[kMostQuads]) {
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      int at = 16 * (thread_ + i * kComputing), slot = 0;
      quads[i] = make_float4(0, 0, 0, 0);
      if (at >= 4 * op.width) continue;
      for (; at >= op.vector_piece; at -= op.vector_piece) ++slot;
      const Cursor from = ahead(slot);
      wait(block_.full(from.slot), from.parity);
      quads[i] = *reinterpret_cast<const float4*>(block_.slot(from.slot) + at);
    }
    release(cursor_, op.vector_slots);
    cursor_ = ahead(op.vector_slots);
  }

  /// As norm_shift() and layer_norm(). Each block makes what its own rows need; one of them, a meeting later,
  /// what is kept for the next token.
  __device__ __forceinline__ void norm_inputs(const Instruction& op) {
    const int quads = op.width / 4;
    const bool shift = op.source == Source::norm_shift;
    float4 n[kMostQuads], other[kMostQuads];
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      const int q = thread_ + i * kComputing;
      n[i] = q < quads ? load4(op.x + 4 * q) : make_float4(0, 0, 0, 0);
    }
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
    take_vector(op, other);  // gain
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      n[i] = make_float4(n[i].x * scale * other[i].x, n[i].y * scale * other[i].y, n[i].z * scale * other[i].z,
                         n[i].w * scale * other[i].w);
    }
    take_vector(op, other);  // bias
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      n[i] = make_float4(n[i].x + other[i].x, n[i].y + other[i].y, n[i].z + other[i].z, n[i].w + other[i].w);
    }
    if (!shift) {
      for (int i = 0; i < kMostQuads; ++i) {
        const int q = thread_ + i * kComputing;
        if (q < quads && needed_ != 0) store4(reinterpret_cast<Bf16*>(input(0)) + 4 * q, n[i]);
      }
      return;
    }
    take_vector(op, other);  // that of the token before
    const int first = block_.first_of(op.quads), end = block_.first_of(op.quads, 1);
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      const int q = thread_ + i * kComputing;
      if (q >= first && q < end) {
        kept_ = n[i];
        kept_to_ = op.last + 4 * q;
      }
      other[i] = make_float4(other[i].x - n[i].x, other[i].y - n[i].y, other[i].z - n[i].z,
                             other[i].w - n[i].w);
    }
    for (int m = 0; m < op.input_count; ++m) {
      if ((needed_ >> m & 1) == 0) continue;
      float4 share[kMostQuads];
      take_vector(op, share);
      auto* const to = reinterpret_cast<Bf16*>(input(m));
#pragma unroll
      for (int i = 0; i < kMostQuads; ++i) {
        const int q = thread_ + i * kComputing;
        if (q >= quads) continue;
        store4(to + 4 * q, make_float4(n[i].x + other[i].x * share[i].x, n[i].y + other[i].y * share[i].y,
                                       n[i].z + other[i].z * share[i].z, n[i].w + other[i].w * share[i].w));
      }
    }
  }

  /// The products of the next `rows` rows of a group: lanes with t = 0 have those of rows g and g + 8 that
  /// come from steps first, first + stride … . Of the kWarps that release each slot this counts as `arrivals`.
  __device__ __forceinline__ float2 tile(const Group& group, Cursor cursor, int rows, const unsigned char* x,
                                         int first, int stride, uint32_t arrivals) const {
    const int log = group.log_rows_of_slot, slots = (rows + (1 << log) - 1) >> log;
    const int row0 = min(lane_ / 4, rows - 1), row8 = min(lane_ / 4 + 8, rows - 1);
    const int body = group.row_bytes, scales = group.scales_bytes, within = (1 << log) - 1;
    float sums[4] = {};
    for (int piece = 0, left = group.in; piece < group.pieces; ++piece, left -= group.piece_elements) {
      const Cursor at0 = cursor.ahead(row0 >> log, slots_), at8 = cursor.ahead(row8 >> log, slots_);
      wait(block_.full(at0.slot), at0.parity);
      wait(block_.full(at8.slot), at8.parity);
      __syncwarp();
      const auto row_of = [&](const Cursor& at, int row) -> SlotRow {
        const unsigned char* const slot = block_.slot(at.slot);
        return {slot + (row & within) * body,
                reinterpret_cast<const uint16_t*>(slot + (body << log) + (row & within) * scales)};
      };
      const SlotRow both[2] = {row_of(at0, row0), row_of(at8, row8)};
      add_products(static_cast<DType>(group.type), both, x, min(left, group.piece_elements), first, stride,
                   sums);
      x += 2 * group.piece_elements;
      __syncwarp();
      if (lane_ < slots) arrive(block_.empty(cursor.ahead(lane_, slots_).slot), arrivals);
      cursor = cursor.ahead(slots, slots_);
    }
    return make_float2(sums[0], sums[2]);
  }

  /// All warps together. One of them calls begin() before, and finish(sum) with the sum of row `lane` % 16.
  template <typename Begin, typename Finish>
  __device__ __forceinline__ void shared_tile(const Group& group, int rows, const unsigned char* x,
                                              const Begin& begin, const Finish& finish) {
    const bool finishes = warp_ == turn_ % kWarps;
    if (finishes) begin();
    float* const partials = block_.part<float>(block_.at.partials) + turn_ % 2 * kWarps * kTile;
    const float2 sums = tile(group, cursor_, rows, x, warp_, kWarps, 1);
    const int slots = slots_of_tile(group, rows);
    for (int piece = 0; piece < group.pieces; ++piece) cursor_ = ahead(slots);
    if (lane_ % 4 == 0) {
      partials[warp_ * kTile + lane_ / 4] = sums.x;
      partials[warp_ * kTile + lane_ / 4 + 8] = sums.y;
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
    int tiles = 0;
    for_tiles(block_, op, op.groups[0], [&](const Job& job, int, int rows) {
      float* const hidden = block_.part<float>(block_.at.hidden) + (hidden_tiles_ & 3) * kTile;
      shared_tile(
          op.groups[0], rows, input(job.input), [] {},
          [&](float sum) {
            const Bf16 y = from_float<Bf16>(activate(static_cast<Activation>(job.activation), sum));
            if (lane_ < kTile) hidden[lane_] = lane_ < rows ? to_float(y) : 0.0f;
            __syncwarp();
            if (lane_ == 0) arrive(block_.part<SharedBarrier>(block_.at.hidden_ready));
          });
      ++hidden_tiles_;
      if (tiles++ > 0) add_values(op, columns, hidden_tiles_ - 2, sums);
    });
    if (tiles > 0) {
      meet();
      add_values(op, columns, hidden_tiles_ - 1, sums);
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
  /// Of the hidden values of tile `tile` that are not zero.
  __device__ __forceinline__ void add_values(const Instruction& op, const Columns& columns, uint32_t tile,
                                             float (&sums)[kMostSums][8]) {
    const float* const hidden = block_.part<float>(block_.at.hidden) + (tile & 3) * kTile;
    uint32_t wanted = __ballot_sync(kAllLanes, lane_ < kTile && hidden[lane_ % kTile] != 0.0f);
    const int pieces = op.value_pieces;
    if (warp_ >= columns.warps) {
      cursor_ = ahead(__popc(wanted) * pieces);
      return;
    }
    const uint32_t arrivals = warp_ == 0 ? 1 + kWarps - columns.warps : 1;  // for those without columns too
    while (wanted != 0) {
      const float h = hidden[__ffs(static_cast<int>(wanted)) - 1];
      wanted &= wanted - 1;
      for (int piece = 0; piece < pieces; ++piece) {
        const Cursor here = ahead(piece);
        wait(block_.full(here.slot), here.parity);
      }
#pragma unroll
      for (int i = 0; i < kMostSums; ++i) {
        if (!columns.any[i]) continue;
        float w[8];
        unpack8(*reinterpret_cast<const uint4*>(block_.slot(ahead(columns.slot[i]).slot) + columns.at[i]), Bf16(), w);
#pragma unroll
        for (int c = 0; c < 8; ++c) sums[i][c] = fmaf(h, w[c], sums[i][c]);
      }
      __syncwarp();
      if (lane_ < pieces) arrive(block_.empty(ahead(lane_).slot), arrivals);
      cursor_ = ahead(pieces);
    }
  }

  /// Each warp has tiles of the head's low-rank products.
  __device__ __forceinline__ void time_mix(const Instruction& op, int head) {
    constexpr int kTiles = kHead / kTile;  // of a product
    float(*const lora)[kHead] = block_.part<float[kHead]>(block_.at.lora);
    float(*const operands)[kHead] = block_.part<float[kHead]>(block_.at.operands);
    const int channel = head * kHead;
    const HeadStep& first = op.first_head;
    // Threads 64 i … have the i-th of these.
    const float* from = first.r;
    if (thread_ / kHead == 1) from = first.k;
    if (thread_ / kHead == 2) from = first.v;
    if (thread_ / kHead == 3) from = first.v_first;
    operands[thread_ / kHead][thread_ % kHead] = from[channel + thread_ % kHead];

    const Cursor parameters = cursor_, state = ahead(1);
    cursor_ = ahead(1 + op.state_slots);
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      const int slots = slots_of_tile(group, kTile);
      for (int nth = 0; nth < kTiles; ++nth) {
        if ((g * kTiles + nth) % kWarps == warp_) {
          const float2 sums =
              tile(group, cursor_, kTile, input(op.jobs[group.first_job].input), 0, 1, kWarps);
          if (lane_ % 4 == 0) {
            lora[g][nth * kTile + lane_ / 4] = sums.x;
            lora[g][nth * kTile + lane_ / 4 + 8] = sums.y;
          }
        }
        for (int piece = 0; piece < group.pieces; ++piece) cursor_ = ahead(slots);
      }
    }
    wait(block_.full(parameters.slot), parameters.parity);
    const auto* const p = reinterpret_cast<const float*>(block_.slot(parameters.slot));
    // A group of 16 threads has 1024 bytes, which are in one slot.
    int at = thread_ / kStepLanes * 1024, piece = 0;
    for (; at >= op.state_piece; at -= op.state_piece) ++piece;
    const Cursor of_group = state.ahead(piece, slots_);
    wait(block_.full(of_group.slot), of_group.parity);
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
                        .before = reinterpret_cast<const float*>(block_.slot(of_group.slot) + at) -
                                  thread_ / kStepLanes * 256,
                        .state = first.state + static_cast<int64_t>(channel) * kHead,
                        .kept = 1.0f,
                        .eps = first.eps};
    meet();
    static_assert(kStepThreads == kComputing);
    step_head(step, thread_, *block_.part<StepShared>(block_.at.step),
              static_cast<Bf16*>(op.step_y) + channel, [] { meet(); });
    release(parameters, 1 + op.state_slots);
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
  const int slots_;
  int thread_, lane_, warp_;
  Cursor cursor_;
  uint32_t needed_ = 0, hidden_tiles_ = 0;
  int input_pitch_ = 0, turn_ = 0;
  float4 kept_{};
  float* kept_to_ = nullptr;
};

}  // namespace rwkvx::cuda::resident
