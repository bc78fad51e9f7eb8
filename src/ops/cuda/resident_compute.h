#pragma once

#include <type_traits>

#include "ops/cuda/activation.h"
#include "ops/cuda/few_rows_units.h"
#include "ops/cuda/resident_ring.h"
#include "ops/cuda/wkv7_step.h"

/// What the computing warps of a block do, all together.
namespace rwkvx::cuda::resident {

/// A row of weights in a slot.
struct SlotRow {
  template <int kBytes>
  struct Elements {
    SharedAddress at;
    __device__ __forceinline__ Elements operator+(int64_t i) const { return {at + kBytes * static_cast<int>(i)}; }
  };
  Elements<1> body;
  Elements<2> scales;
  template <typename T, typename Address>
  static __device__ __forceinline__ void once(T& v, Address p, bool) {
    load_shared(v, p.at);
  }
  template <typename T, typename Address>
  static __device__ __forceinline__ void reused(T& v, Address p, bool) {
    load_shared(v, p.at);
  }
};

/// Inputs lie in groups of 8 elements, four words, of which the second and third have changed places: half of a
/// group is what a lane needs of it.
__device__ __forceinline__ void store_input(unsigned char* to, int quad, float4 v) {
  auto* const words = reinterpret_cast<uint32_t*>(to) + quad / 2 * 4 + quad % 2;
  words[0] = pack_bf16(v.x, v.y);
  words[2] = pack_bf16(v.z, v.w);
}

/// The part of an input that a lane multiplies with a unit: of each group words 0 and 2 of its pairs, or 1 and 3
/// in lanes of odd rows.
template <typename Unit>
struct UnitInput {
  static constexpr int kGroups = Unit::kElements / 8;
  using Words = std::conditional_t<Unit::kMixed, uint4, uint2>;
  Words words[kGroups];
  __device__ __forceinline__ void load(SharedAddress x, int unit, bool odd) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      load_shared(words[g], x + 2 * Unit::at(unit, g) + (Unit::kMixed || !odd ? 0 : 8));
    }
  }
  __device__ __forceinline__ uint2 of_group(int g, bool odd) const {
    if constexpr (Unit::kMixed) {
      const uint32_t halves = odd ? 0x7632u : 0x5410u;
      const uint4& v = words[g];  // words 0, 2, 1, 3
      return make_uint2(pick_bytes(v.x, v.z, halves), pick_bytes(v.y, v.w, halves));
    } else {
      return words[g];
    }
  }
};

/// The products of 8 rows with x, [elements] bfloat16: lane 4 g gets that of row g. Elements are a multiple of a
/// step of k, 4 units. Lane (g, t) has whole units of row g; two words of a group of 8 are row g of mma_bf16()'s
/// first operand, the other two row g + 8, and what belongs to them of x is in columns 0 and 1 of the second:
/// so all the products are in the results (g, 0) and (g + 8, 1). Of every kOf steps the first-th.
template <typename Unit, int kOf>
__device__ __forceinline__ float products_of(const SlotRow& row, SharedAddress x, int elements, int first) {
  // Steps that are loaded together.
  constexpr int kTogether = Unit::kElements == 8 ? 8 : (Unit::kElements == 16 ? 4 : 2);
  const int lane = static_cast<int>(threadIdx.x) % 32, units = elements / Unit::kElements;
  const bool odd = lane / 4 % 2 != 0;
  float sums[4][4] = {};  // several, as one product waits for the one before
  Unit w[kTogether];
  UnitInput<Unit> v[kTogether];
  const auto multiply = [&](int s, int unit) {
    const auto scales = w[s].scales(unit);
#pragma unroll
    for (int g = 0; g < Unit::kElements / 8; ++g) {
      uint32_t pairs[4];
      w[s].pairs(scales, unit, g, pairs);
      const uint2 of_x = v[s].of_group(g, odd);
      mma_bf16(sums[(s + g) % 4], pairs, {of_x.x, of_x.y});
    }
  };
  constexpr int kStep = 4 * kOf;
  int unit = lane % 4 + 4 * first;
#pragma unroll 1
  for (; unit + kStep * (kTogether - 1) < units; unit += kStep * kTogether) {
#pragma unroll
    for (int s = 0; s < kTogether; ++s) {
      w[s].load(row, unit + kStep * s, true);
      v[s].load(x, unit + kStep * s, odd);
    }
    __syncwarp();  // or the assembler moves each load to where it is used, and the warp waits there
#pragma unroll
    for (int s = 0; s < kTogether; ++s) multiply(s, unit + kStep * s);
  }
#pragma unroll 1
  for (; unit < units; unit += kStep) {
    w[0].load(row, unit, true);
    v[0].load(x, unit, odd);
    multiply(0, unit);
  }
  return ((sums[0][0] + sums[0][3]) + (sums[1][0] + sums[1][3])) +
         ((sums[2][0] + sums[2][3]) + (sums[3][0] + sums[3][3]));
}
template <int kOf>
__device__ __forceinline__ float products_of(DType type, const SlotRow& row, SharedAddress x, int elements,
                                             int first) {
  switch (type) {
    case DType::q8_0:
      return products_of<TensorQ8_0, kOf>(row, x, elements, first);
    case DType::q4_0:
      return products_of<TensorQ4_0, kOf>(row, x, elements, first);
    case DType::q4_k:
      return products_of<TensorQ4_K, kOf>(row, x, elements, first);
    case DType::q5_k:
      return products_of<TensorQ5_K, kOf>(row, x, elements, first);
    default:
      return products_of<TensorBf16, kOf>(row, x, elements, first);
  }
}

/// Where a step's results go, as Job::y and Job::tagged.
struct StepResult {
  Bf16* y;
  uint64_t* tagged;
  uint32_t tag;
};
__device__ __forceinline__ void store_step(const StepResult& to, int c, float4 v) {
  store4(to.y + c, v);
  if (to.tagged == nullptr) return;
  const uint32_t low = pack_bf16(v.x, v.y), high = pack_bf16(v.z, v.w);
  store_tagged(to.tagged + c, low & 0xffff, to.tag);
  store_tagged(to.tagged + c + 1, low >> 16, to.tag);
  store_tagged(to.tagged + c + 2, high & 0xffff, to.tag);
  store_tagged(to.tagged + c + 3, high >> 16, to.tag);
}

class Computer {
 public:
  __device__ __forceinline__ Computer(const Block& block, uint32_t first_tag)
      : block_(block),
        first_tag_(first_tag),
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
  /// After a meeting of the grid, where it asks for one.
  __device__ __forceinline__ void run(const Instruction& op) {
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
  /// All have read what is replaced here.
  __device__ __forceinline__ void all_have_met() {
#pragma unroll
    for (int i = 0; i < kMostKept; ++i) {
      if (kept_to_[i] != nullptr) store4(kept_to_[i], kept_[i]);
      kept_to_[i] = nullptr;
    }
    norms_ = 0;
  }

 private:
  __device__ __forceinline__ unsigned char* input(int i) const {
    return block_.part<unsigned char>(block_.at.inputs) + place_of_input(needed_, i) * input_pitch_;
  }
  __device__ __forceinline__ Cursor ahead(int n) const { return block_.ahead(cursor_, n); }
  /// Until the next n trays are filled, n ≤ 32.
  __device__ __forceinline__ void wait_for(int n) const {
    if (lane_ < n) {
      const Cursor at = ahead(lane_);
      // A barrier tells two phases apart, and a warp may come here some rounds of the ring before a tray does.
      wait_for_shared_count(block_.part<uint32_t>(block_.at.fetched), at.before + 1);
      wait(block_.full(at.tray), at.parity);
    }
    __syncwarp();
  }
  /// This warp, and as many as it speaks for, need the next n trays no more.
  __device__ __forceinline__ void release(int n, uint32_t warps = 1) const {
    __syncwarp();
    if (lane_ < n) arrive(block_.empty(ahead(lane_).tray), warps);
  }
  /// What a norm reads beside x: gain, bias, the last row, and the shares of the inputs needed.
  __device__ __forceinline__ int vectors(const Instruction& op) const {
    return op.source == Source::norm_shift ? 3 + __popc(needed_) : 2;
  }

  __device__ __forceinline__ void copy_inputs(const Instruction& op) const {
    for (int i = 0; i < op.input_count; ++i) {
      if ((needed_ >> i & 1) == 0) continue;
      if (op.meets == 0) {
        copy_tagged(op.tagged_inputs[i], op.input_elements[i], first_tag_ + op.reads, input(i));
        continue;
      }
      const auto* from = static_cast<const uint4*>(op.inputs[i]);
      auto* to = reinterpret_cast<uint4*>(input(i));
      for (int q = thread_; q < op.input_elements[i] / 8; q += kComputing) {
        const uint4 v = from[q];
        to[q] = make_uint4(v.x, v.z, v.y, v.w);  // as store_input()
      }
    }
  }

  __device__ __forceinline__ void copy_tagged(const uint64_t* from, int elements, uint32_t tag,
                                              unsigned char* to) const {
    for (int q = thread_; q < elements / 4; q += kComputing) {
      uint4 v;
      uint32_t waits = 0;
      while (!try_load_tagged(v, from + 4 * q, tag)) wait_briefly(waits);
      auto* const words = reinterpret_cast<uint32_t*>(to) + q / 2 * 4 + q % 2;  // as store_input()
      words[0] = v.x | v.y << 16;
      words[2] = v.z | v.w << 16;
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

  __device__ __forceinline__ void load_x(const Instruction& op, int quads, float4 (&x)[kMostQuads]) const {
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) x[i] = make_float4(0, 0, 0, 0);
    if (op.meets != 0) {
#pragma unroll
      for (int i = 0; i < kMostQuads; ++i) {
        const int q = thread_ + i * kComputing;
        if (q < quads) x[i] = load4(op.x + 4 * q);
      }
      return;
    }
    const uint32_t tag = first_tag_ + op.reads;
    uint32_t waits = 0;
    while (true) {
      bool all = true;
#pragma unroll
      for (int i = 0; i < kMostQuads; ++i) {
        const int q = thread_ + i * kComputing;
        uint4 v = kNoWords;
        if (q < quads) all = try_load_tagged(v, op.tagged_x + 4 * q, tag) && all;
        x[i] = make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z),
                           __uint_as_float(v.w));
      }
      if (all) return;
      wait_briefly(waits);
    }
  }

  /// As norm_shift() and layer_norm(). Each block makes what its own rows need; one of them, a meeting later,
  /// what is kept for the next token.
  __device__ __forceinline__ void norm_inputs(const Instruction& op) {
    const int quads = op.width / 4;
    float4 n[kMostQuads];
    load_x(op, quads, n);
    // Where this thread's quads of a vector lie, from its first slot on: all are in one tray.
    int at[kMostQuads];
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      at[i] = 16 * min(thread_ + i * kComputing, quads - 1);
      int slot = 0;
      for (; at[i] >= op.vector_piece; at[i] -= op.vector_piece) ++slot;
      at[i] += slot * block_.at.slot_bytes;
    }
    const auto vector = [&](int which) { return block_.slot(cursor_, which * op.vector_slots); };
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
    const unsigned char *const gains = vector(0), *const biases = vector(1), *const lasts = vector(2);
    float4 change[kMostQuads];
#pragma unroll
    for (int i = 0; i < kMostQuads; ++i) {
      const int q = thread_ + i * kComputing;
      if (q >= quads) continue;
      const float4 gain = *reinterpret_cast<const float4*>(gains + at[i]),
                   bias = *reinterpret_cast<const float4*>(biases + at[i]);
      n[i] = make_float4(n[i].x * scale * gain.x + bias.x, n[i].y * scale * gain.y + bias.y,
                         n[i].z * scale * gain.z + bias.z, n[i].w * scale * gain.w + bias.w);
      if (!shift) {
        if (needed_ != 0) store_input(block_.part<unsigned char>(block_.at.inputs), q, n[i]);
        continue;
      }
      if (q >= first && q < end) {
#pragma unroll
        for (int k = 0; k < kMostKept; ++k) {
          if (k != norms_) continue;
          kept_[k] = n[i];
          kept_to_[k] = op.last + 4 * q;
        }
      }
      const float4 last = *reinterpret_cast<const float4*>(lasts + at[i]);
      change[i] = make_float4(last.x - n[i].x, last.y - n[i].y, last.z - n[i].z, last.w - n[i].w);
    }
    if (shift) ++norms_;
    const int places = shift ? __popc(needed_) : 0;
    for (int place = 0; place < places; ++place) {
      const unsigned char* const shares = vector(3 + place);
      unsigned char* const to = block_.part<unsigned char>(block_.at.inputs) + place * input_pitch_;
#pragma unroll
      for (int i = 0; i < kMostQuads; ++i) {
        const int q = thread_ + i * kComputing;
        if (q >= quads) continue;
        const float4 share = *reinterpret_cast<const float4*>(shares + at[i]);
        store_input(to, q,
               make_float4(n[i].x + change[i].x * share.x, n[i].y + change[i].y * share.y,
                           n[i].z + change[i].z * share.z, n[i].w + change[i].w * share.w));
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
    return {{address_of(slot + within * group.row_bytes)},
            {address_of(slot + (group.row_bytes << log) + within * group.scales_bytes)}};
  }

  /// The next tile: two warps', of which one calls begin() before, and finish(sum); lane 4 g has that of row g.
  template <typename Begin, typename Finish>
  __device__ __forceinline__ void tile(const Group& group, int rows, int input_index, const Begin& begin,
                                       const Finish& finish) {
    const int trays = trays_of_tile(group, rows);
    const int team = warp_ / 2, half = warp_ % 2;
    if (turn_++ % kTeams != team) {
      for (int piece = 0; piece < group.pieces; ++piece) cursor_ = ahead(trays);
      return;
    }
    if (half == 0) begin();
    SharedAddress x = address_of(input(input_index));
    float sum = 0.0f;
    for (int piece = 0, left = group.in; piece < group.pieces; ++piece, left -= group.piece_elements) {
      wait_for(trays);
      sum += products_of<2>(static_cast<DType>(group.type), row_of(group, cursor_, min(lane_ / 4, rows - 1)), x,
                            min(left, group.piece_elements), half);
      x += 2 * group.piece_elements;
      release(trays, kWarps / 2);
      cursor_ = ahead(trays);
    }
    // Two buffers: who writes one again has met who read it.
    float* const other = block_.part<float>(block_.at.halves) + (turn_ / kTeams % 2 * kTeams + team) * kTile;
    if (half == 1 && lane_ % 4 == 0) other[lane_ / 4] = sum;
    sync_at<64>(3 + team);
    if (half == 0) finish(sum + other[lane_ / 4]);
  }

  __device__ __forceinline__ void products(const Instruction& op) {
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      for_tiles(block_, op, group, [&](const Job& job, int row, int rows) {
        const int output = row + lane_ / 4;
        const bool stores = lane_ % 4 == 0 && lane_ / 4 < rows;
        float before = 0.0f;
        tile(
            group, rows, job.input,
            [&] {
              if (stores && job.add) before = static_cast<const float*>(job.y)[output];
            },
            [&](float sum) {
              if (!stores) return;
              const float y = job.add ? before + sum : activate(static_cast<Activation>(job.activation), sum);
              uint32_t bits = __float_as_uint(y);
              if (job.y_bf16) {
                const Bf16 rounded = from_float<Bf16>(y);
                bits = rounded.bits;
                static_cast<Bf16*>(job.y)[output] = rounded;
              } else {
                static_cast<float*>(job.y)[output] = y;
              }
              if (job.tagged != nullptr) store_tagged(job.tagged + output, bits, first_tag_ + op.writes);
            });
      });
    }
  }

  __device__ __forceinline__ void channel_mix(const Instruction& op) {
    const Group& group = op.groups[0];
    float sums[kMostSums][4] = {};
    int at[kMostSums];  // of this thread's columns in a value row's slots, in bytes
#pragma unroll
    for (int i = 0; i < kMostSums; ++i) {
      at[i] = 8 * (thread_ + i * kComputing);
      int slot = 0;
      for (; at[i] >= op.value_piece && slot < op.value_pieces; at[i] -= op.value_piece) ++slot;
      // Threads without columns add up anything, and store nothing.
      at[i] = slot < op.value_pieces ? at[i] + slot * block_.at.slot_bytes : 0;
    }
    const int used = (op.out + 4 * kComputing - 1) / (4 * kComputing);
    int tiles = 0;  // whose value rows are to come
    const auto all_values = [&] {
      for (; tiles > 0; --tiles) add_values(op, used, at, sums);
    };
    for_tiles(block_, op, group, [&](const Job& job, int, int rows) {
      if (tiles == kHiddenTiles) {
        all_values();
        meet();  // all have read the hidden values that the next ones replace
      }
      const int which = hidden_tiles_++ % kHiddenTiles;
      ++tiles;
      tile(
          group, rows, job.input, [] {}, [&](float sum) { keep_hidden(job, sum, rows, which); });
    });
    all_values();
    float* const to = op.parts + static_cast<int64_t>(block_.index) * op.out;
#pragma unroll
    for (int i = 0; i < kMostSums; ++i) {
      if (4 * (thread_ + i * kComputing) >= op.out) continue;
      store4(to + 4 * (thread_ + i * kComputing), make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]));
    }
  }
  /// Of the tile's owner: lane 4 g has row g.
  __device__ __forceinline__ void keep_hidden(const Job& job, float sum, int rows, int which) const {
    Hidden& to = block_.part<Hidden>(block_.at.hidden)[which];
    const float x = to_float(from_float<Bf16>(activate(static_cast<Activation>(job.activation), sum)));
    const int row = lane_ / 4;
    const bool wanted = lane_ % 4 == 0 && row < rows && x != 0.0f;
    const uint32_t all = __ballot_sync(kAllLanes, wanted);
    const int count = __popc(all);
    if (wanted) {
      const int place = __popc(all & ((1u << lane_) - 1));
      to.values[place] = x;
      to.rows[place] = row;
    }
    if (lane_ < kTile + 4 && lane_ >= count) to.values[lane_] = 0.0f;
    if (lane_ == 0) to.count = count;
    __syncwarp();
    if (lane_ == 0) arrive(block_.part<SharedBarrier>(block_.at.hidden_ready) + which);
  }
  /// The value rows of the next tile of hidden values.
  __device__ __forceinline__ void add_values(const Instruction& op, int used, const int (&at)[kMostSums],
                                             float (&sums)[kMostSums][4]) {
    const int which = value_tiles_ % kHiddenTiles;
    if (lane_ == 0) {
      wait(block_.part<SharedBarrier>(block_.at.hidden_ready) + which, value_tiles_ / kHiddenTiles & 1);
    }
    __syncwarp();
    ++value_tiles_;
    const Hidden& hidden = block_.part<Hidden>(block_.at.hidden)[which];
    const int pieces = op.value_pieces, of_tray = pieces == 1 ? 4 : (pieces == 2 ? 2 : 1);
    const int count = hidden.count, trays = trays_of(count * pieces);
    wait_for(trays);
    Cursor tray = cursor_;
    for (int nth = 0; nth < count; nth += of_tray) {
      const SharedAddress from = address_of(block_.slot(tray, 0));
      // Behind the last row the tray's first, times zero.
      const int rows = min(of_tray, count - nth), row_bytes = pieces * block_.at.slot_bytes;
      const float* const h = hidden.values + nth;
      if (used == 1) add_tray<1>(from, h, rows, row_bytes, at, sums);
      if (used == 2) add_tray<2>(from, h, rows, row_bytes, at, sums);
      if (used == 3) add_tray<3>(from, h, rows, row_bytes, at, sums);
      if (used == 4) add_tray<4>(from, h, rows, row_bytes, at, sums);
      tray = block_.ahead(tray, 1);
    }
    release(trays);
    cursor_ = ahead(trays);
  }
  template <int kSums>
  static __device__ __forceinline__ void add_tray(SharedAddress from, const float* hidden, int rows,
                                                  int row_bytes, const int (&at)[kMostSums],
                                                  float (&sums)[kMostSums][4]) {
    float h[kSlotsOfTray];
    uint2 words[kSlotsOfTray][kSums];
#pragma unroll
    for (int r = 0; r < kSlotsOfTray; ++r) {
      const bool valid = r < rows;
      h[r] = valid ? hidden[r] : 0.0f;
      const SharedAddress row = from + (valid ? r * row_bytes : 0);
#pragma unroll
      for (int i = 0; i < kSums; ++i) load_shared(words[r][i], row + at[i]);
    }
    __syncwarp();  // as in products_of()
#pragma unroll
    for (int r = 0; r < kSlotsOfTray; ++r) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        sums[i][0] = fmaf(h[r], low_bf16(words[r][i].x), sums[i][0]);
        sums[i][1] = fmaf(h[r], high_bf16(words[r][i].x), sums[i][1]);
        sums[i][2] = fmaf(h[r], low_bf16(words[r][i].y), sums[i][2]);
        sums[i][3] = fmaf(h[r], high_bf16(words[r][i].y), sums[i][3]);
      }
    }
  }

  /// Each warp has a tile of each of the head's low-rank products.
  __device__ __forceinline__ void time_mix(const Instruction& op, int head) {
    float(*const lora)[kHead] = block_.part<float[kHead]>(block_.at.lora);
    float(*const operands)[kHead] = block_.part<float[kHead]>(block_.at.operands);
    const int channel = head * kHead;
    const HeadStep& first = op.first_head;
    // Threads 64 i … have the i-th of these.
    const int which = thread_ / kHead;
    const float* const from = which == 0 ? first.r : (which == 1 ? first.k : (which == 2 ? first.v : first.v_first));
    const bool tagged = op.meets == 0 && which < 3;
    const uint64_t* const words = which == 0 ? op.tagged_operands[0] : (which == 1 ? op.tagged_operands[1] : op.tagged_operands[2]);
    const int at_operand = channel + thread_ % kHead;
    const float operand = tagged ? __uint_as_float(load_tagged(words + at_operand, first_tag_ + op.reads))
                                 : from[at_operand];

    wait_for(op.head_trays);
    static_assert(kHead == kWarps * kTile);
    const int row = warp_ * kTile;
    for (int g = 0; g < op.group_count; ++g) {
      const Group& group = op.groups[g];
      const SlotRow weights = row_of(group, ahead(op.lora_trays[g]), row + lane_ / 4);
      const SharedAddress x = address_of(input(op.jobs[group.first_job].input));
      const float sum = products_of<TensorBf16, 1>(weights, x, group.in, 0);
      if (lane_ % 4 == 0) lora[g][row + lane_ / 4] = sum;
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
    const StepResult y{static_cast<Bf16*>(op.step_y) + channel,
                       op.tagged_step != nullptr ? op.tagged_step + channel : nullptr, first_tag_ + op.writes};
    step_head(step, thread_, *block_.part<StepShared>(block_.at.step), y, [] { meet(); });
    release(op.head_trays);
    cursor_ = ahead(op.head_trays);
  }

  /// A warp adds every kWarps-th part of 32 outputs.
  __device__ __forceinline__ void total(const Instruction& op) const {
    constexpr int kTogether = 18;
    float* const partials = block_.part<float>(block_.at.scratch);  // [kWarps, 32]
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
  const uint32_t first_tag_;
  int thread_, lane_, warp_;
  Cursor cursor_;
  uint32_t needed_ = 0, hidden_tiles_ = 0, value_tiles_ = 0;
  int input_pitch_ = 0, turn_ = 0;
  int norms_ = 0;  // since the last meeting
  float4 kept_[kMostKept]{};
  float* kept_to_[kMostKept]{};
};

}  // namespace rwkvx::cuda::resident
