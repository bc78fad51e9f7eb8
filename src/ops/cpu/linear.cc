#include "ops/cpu/linear.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "base/assert.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/linear_quantised.h"

namespace rwkvx::cpu {
namespace {

/// Matrix::prepared.
struct Prepared {
  std::optional<PackedBlocks> blocks;
  std::optional<InputMajor> inputs;
};

const Prepared* prepared(const LinearCall& call) {
  return static_cast<const Prepared*>(call.w->prepared.get());
}
const PackedBlocks* by_bytes(const LinearCall& call) {
  const Prepared* p = prepared(call);
  return p && p->blocks ? &*p->blocks : nullptr;
}
/// For few rows of which most values may be zero.
const InputMajor* by_inputs(const LinearCall& call) {
  const Prepared* p = prepared(call);
  return p && p->inputs && call.x.dim(0) <= kFewRows ? &*p->inputs : nullptr;
}

/// Up to this share of a row's values that are not zero, reading their weights alone is faster than reading
/// all in order. Measured, see docs/decisions/0011.
double sparse_share(DType weight) {
  const bool fast_in_order = weight == DType::q4_0 || weight == DType::q4_k || weight == DType::q5_k;
  return fast_in_order ? 0.2 : 0.33;
}
/// A row at a time: its result shall not depend on the others.
bool is_sparse(int64_t non_zero, const InputMajor& w) {
  return static_cast<double>(non_zero) <= sparse_share(w.type) * static_cast<double>(w.in);
}

/// Rows for which weights are at most read as they lie, and not brought into another order first.
constexpr int64_t kMostFewRows = 32;
/// Rows whose inputs as bytes stay in a core's cache while it goes through weights.
constexpr int64_t kCachedRows = 128;
/// Of these, rows and outputs for which sums are taken at a time from weights in the first cache.
constexpr int64_t kCachedBytesRows = 24, kCachedBytesOuts = 32;
/// Inputs whose rounding is worth a thread.
constexpr int64_t kWorthThread = 1 << 15;

/// Blocks of outputs, each a task.
int64_t out_blocks(const LinearCall& call, int64_t block = kOutBlock) {
  return (call.w->out() + block - 1) / block;
}

/// Outputs at most of a task by tiles whose 64 take little more time than to begin and to end.
constexpr int64_t kNarrowBlock = 4 * kOutBlock;

LinearCall rows_of(const LinearCall& call, int64_t first, int64_t count) {
  LinearCall part = call;
  part.x = call.x.rows(first, count);
  part.y = call.y.rows(first, count);
  return part;
}

int64_t padded(const LinearCall& call) { return (call.w->in() + kPadding - 1) / kPadding * kPadding; }

/// Floats of memory that quantise_input() fills.
int64_t quantised_elements(const LinearCall& call) {
  const auto floats = static_cast<int64_t>(sizeof(InputBlock) / sizeof(float));
  return (call.x.elements() / 32 * floats + kPadding - 1) / kPadding * kPadding;
}

/// Outputs of a task of sparse inputs: their sums shall stay in the first cache, and each thread shall get
/// some tasks.
int64_t part_outs(const InputMajor& w, int64_t rows, int threads) {
  constexpr int64_t kSums = 4096, kLeast = 128;
  const int64_t tasks = 2 * threads, parts = (tasks + kSegments - 1) / kSegments;
  const int64_t outs = std::max(kLeast, std::min(kSums / rows, w.out / parts));
  return std::min(outs / kOutBlock * kOutBlock, w.out);
}

}  // namespace

Matrix Linear::prepare(ConstView weight, bool sparse_input) {
  Prepared made;
  if (bytes_ && is_quantised(weight.dtype())) made.blocks = pack_blocks(weight, pool_);
  if (sparse_input && can_be_input_major(weight)) made.inputs = input_major(weight, pool_);
  if (!made.blocks && !made.inputs) return {weight, nullptr};
  return {weight, std::make_shared<Prepared>(std::move(made))};
}

/// Measured: up to here the weights are better read by our own kernels than by those of many rows, which
/// first copy them into another order (and first convert those that are not of x's type).
bool Linear::few(const LinearCall& call) const {
  const int64_t rows = call.x.dim(0);
  const bool tiles = tiles_ && TileRows::can(call);
  if (by_bytes(call)) return rows <= kMostFewRows || !tiles;
  if (by_tiles(call)) return true;
  return rows <= (tiles || call.w->weight.dtype() == DType::f32 ? kFewRows : kMostFewRows);
}

/// From one row on: a row has the same sums alone and among others.
bool Linear::by_tiles(const LinearCall& call) const {
  const int64_t rows = call.x.dim(0);
  return tiles_ && rows <= kMostFewRows && call.x.dtype() == DType::bf16 &&
         call.w->weight.dtype() == DType::bf16 && call.w->in() % kTileDepth == 0 &&
         call.w->out() % kTileRows == 0;
}

int64_t Linear::out_block(const LinearCall& call) const {
  if (!by_tiles(call) || call.w->in() / kTileDepth > kNarrowSteps) return kOutBlock;
  const int64_t share = call.w->out() / pool_.threads() / kOutBlock * kOutBlock;
  return std::clamp(share, kOutBlock, kNarrowBlock);
}

bool Linear::by_bf16_dot(const LinearCall& call) const {
  return bf16_dot_ && call.x.dtype() == DType::bf16 && call.w->weight.dtype() == DType::bf16;
}

/// What add_few() needs at most.
int64_t Linear::input_elements(const LinearCall& call) const {
  const int64_t rows = call.x.dim(0);
  // Rows may be listed together, or one at a time beside others that are not.
  int64_t listed = 0;
  if (by_inputs(call)) {
    const int64_t in = call.w->in(), all = non_zero_rows(rows);
    listed = rows * non_zero_elements(1, in) + non_zero_elements(all, in) +
             (rows + all) * kSegments * call.w->out();
  }
  // Each one's memory is padded.
  if (by_bytes(call)) return listed + rows * quantised_elements(rows_of(call, 0, 1));
  if (by_tiles(call)) return listed + rows * padded(call) / 2;
  return listed + (by_bf16_dot(call) ? 0 : rows * padded(call));
}

void Linear::add_few(const LinearCall& call, float*& memory) {
  const InputMajor* w = by_inputs(call);
  if (w == nullptr) return add_dense(call, memory);
  const int64_t rows = call.x.dim(0);
  if (rows == 1) {
    const NonZero listed = find_non_zero(call.x, memory);
    return is_sparse(listed.count, *w) ? add_listed(call, *w, listed, memory) : add_dense(call, memory);
  }
  int64_t sparse = 0;
  for (int64_t r = 0; r < rows; ++r) sparse += is_sparse(count_non_zero(call.x.rows(r, 1)), *w);
  if (sparse == 0) return add_dense(call, memory);
  if (sparse == rows) return add_listed(call, *w, find_non_zero(call.x, memory), memory);
  for (int64_t r = 0; r < rows; ++r) add_few(rows_of(call, r, 1), memory);
}

/// `listed` lies at `memory`.
void Linear::add_listed(const LinearCall& call, const InputMajor& w, const NonZero& listed, float*& memory) {
  FewRows few{.call = call, .x = nullptr, .tasks = 0, .inputs = &w, .non_zero = listed};
  memory += non_zero_elements(listed.rows, w.in);
  few.sums = memory;
  memory += kSegments * listed.rows * w.out;
  few.part_outs = part_outs(w, listed.rows, pool_.threads());
  few.tasks = kSegments * ((w.out + few.part_outs - 1) / few.part_outs);
  few_.push_back(few);
}

void Linear::add_dense(const LinearCall& call, float*& memory) {
  if (by_bytes(call)) {
    add_bytes(call, reinterpret_cast<InputBlock*>(memory));
    memory += quantised_elements(call);
    return;
  }
  const int64_t rows = call.x.dim(0), in = call.w->in(), block = out_block(call);
  few_.push_back({call, memory, out_blocks(call, block), block});
  if (by_tiles(call) && rows == 1) {  // pair by pair already
    few_.back().x = static_cast<const float*>(call.x.data());
  } else if (by_tiles(call)) {
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t some = std::min(kTileRows, rows - r);
      pair_rows(call.x.rows(r, some), memory + r * in / 2);
    }
    memory += rows * padded(call) / 2;
  } else if (!by_bf16_dot(call)) {
    spread_input(call, padded(call), memory);
    memory += rows * padded(call);
  }
}

void Linear::add_bytes(const LinearCall& call, InputBlock* x) {
  const int64_t rows = call.x.dim(0), row_blocks = call.w->in() / 32;
  pool_.run_ranges(rows, kWorthThread / call.w->in() + 1, [&](int64_t begin, int64_t end) {
    quantise_input(rows_of(call, begin, end - begin), x + begin * row_blocks);
  });
  for (int64_t r = 0; r < rows; r += kCachedRows) {
    few_.push_back({rows_of(call, r, std::min(kCachedRows, rows - r)),
                    reinterpret_cast<float*>(x + r * row_blocks), out_blocks(call)});
  }
}

void Linear::run(std::span<const LinearCall> calls) {
  for (const LinearCall& call : calls) {
    RWKVX_ASSERT(call.x.dim(1) == call.w->in() && call.y.dim(1) == call.w->out());
    RWKVX_ASSERT(call.x.dim(0) == call.y.dim(0));
  }
  run_few(calls);
  many_.clear();
  tiled_.clear();
  for (const LinearCall& call : calls) {
    if (few(call)) continue;
    if (tiles_ && TileRows::can(call)) {
      tiled_.push_back({&call, by_bytes(call)});
    } else {
      many_.push_back(&call);
    }
  }
  if (tiles_) tiles_->run(tiled_);
  many_rows_.run(many_);
}

bool Linear::run_normed(const NormShift& norm, std::span<const LinearCall> calls) {
  if (!tiles_ || !TileRows::can_norm(norm)) return false;
  for (const View& y : norm.y) {  // one that nothing reads has no room
    const auto reads = [&](const LinearCall& call) { return call.x.data() == y.data(); };
    if (std::none_of(calls.begin(), calls.end(), reads)) return false;
  }
  tiled_.clear();
  for (const LinearCall& call : calls) {
    if (few(call) || !TileRows::can(call)) return false;
    tiled_.push_back({&call, by_bytes(call)});
  }
  tiles_->run(tiled_, &norm);
  return true;
}

/// The products of few rows among the calls, in one parallel region.
void Linear::run_few(std::span<const LinearCall> calls) {
  int64_t elements = 0, tasks = 0;
  uint64_t weight_bytes = 0;
  for (const LinearCall& call : calls) {
    if (few(call)) elements += input_elements(call);
  }
  float* input = inputs_.take<float>(elements);
  few_.clear();
  for (const LinearCall& call : calls) {
    if (!few(call)) continue;
    add_few(call, input);
    weight_bytes += call.w->weight.bytes();
  }
  for (const FewRows& one : few_) tasks += one.tasks;
  constexpr uint64_t kWorthThreads = 256 << 10;  // bytes: some 10 µs of one core
  const auto run_task = [&](int64_t task, int thread) {
    for (const FewRows& one : few_) {
      if (task < one.tasks) {
        if (one.inputs) return run_part(one, task);
        return run_block(one, task, thread);
      }
      task -= one.tasks;
    }
  };
  if (weight_bytes >= kWorthThreads) {
    pool_.run_stretches(tasks, run_task);
  } else {
    for (int64_t task = 0; task < tasks; ++task) run_task(task, 0);
  }
  for (const FewRows& one : few_) {
    if (one.inputs) finish_parts(one);
  }
}

/// Segment by segment.
void Linear::run_part(const FewRows& product, int64_t task) {
  const InputMajor& w = *product.inputs;
  const int64_t parts = product.tasks / kSegments, first = task % parts * product.part_outs;
  const SparsePart part{task / parts, first, std::min(product.part_outs, w.out - first)};
  sum_inputs(w, product.non_zero, part, product.sums + part.segment * product.non_zero.rows * w.out);
}

void Linear::finish_parts(const FewRows& product) {
  const int64_t rows = product.call.x.dim(0), out = product.inputs->out;
  const int64_t stride = product.non_zero.rows * out;
  constexpr int64_t kWorthAThread = 1 << 14;  // sums
  pool_.run_ranges(out / kOutBlock, kWorthAThread / kOutBlock / rows, [&](int64_t begin, int64_t end) {
    alignas(64) float sums[kOutBlock];
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = begin * kOutBlock; o < end * kOutBlock; o += kOutBlock) {
        add_segments(product.sums + r * out + o, stride, kOutBlock, sums);
        finish_few_rows(product.call, r, 1, o, kOutBlock, sums);
      }
    }
  });
}

void Linear::run_tiles(const FewRows& product, int64_t first, int64_t outs) {
  const LinearCall& call = product.call;
  const int64_t in = call.w->in(), all = call.x.dim(0);
  alignas(64) float columns[kNarrowBlock * kTileRows], sums[kTileRows * kOutBlock];
  for (int64_t begin = 0; begin < all; begin += kTileRows) {
    const int64_t rows = std::min(kTileRows, all - begin);
    tiles_->unit().few_rows({.weights = call.w->weight.as<BFloat16>() + first * in,
                             .weight_tiles = outs / kTileRows,
                             .x = reinterpret_cast<const BFloat16*>(product.x + begin * in / 2),
                             .rows = rows,
                             .steps = in / kTileDepth,
                             .sums = columns});
    if (rows == 1) {  // a column as it has to be
      finish_few_rows(call, begin, 1, first, outs, columns);
      continue;
    }
    for (int64_t o = 0; o < outs; o += kOutBlock) {
      const int64_t some = std::min(kOutBlock, outs - o);
      turn_tile_sums(columns + o * rows, some, rows, sums);
      finish_few_rows(call, begin, rows, first + o, some, sums);
    }
  }
}

void Linear::run_bytes(const FewRows& product, int64_t first, int64_t outs) {
  const LinearCall& call = product.call;
  const int64_t all = call.x.dim(0), row_blocks = call.w->in() / 32;
  const auto* x = reinterpret_cast<const InputBlock*>(product.x);
  alignas(64) float sums[kCachedBytesRows * kOutBlock];
  // Few rows read weights from memory; the others of many find fewer of them, and their sums, in the first
  // cache.
  const int64_t some = all <= kFewRows ? outs : kCachedBytesOuts;
  for (int64_t o = first; o < first + outs; o += some) {
    const int64_t here = std::min(some, first + outs - o);
    for (int64_t row = 0, rows; row < all; row += rows) {
      rows = std::min(row == 0 ? kFewRows : kCachedBytesRows, all - row);
      dot_rows_quantised({.weight = by_bytes(call),
                          .first = o,
                          .outs = here,
                          .x = x + row * row_blocks,
                          .rows = rows,
                          .cached = row > 0,
                          .sums = sums});
      finish_few_rows(call, row, rows, o, here, sums);
    }
  }
}

void Linear::run_block(const FewRows& product, int64_t task, int thread) {
  const LinearCall& call = product.call;
  const float* x = product.x;
  const int64_t first = task * product.block, outs = std::min(product.block, call.w->out() - first);
  if (by_tiles(call)) return run_tiles(product, first, outs);
  if (by_bytes(call)) return run_bytes(product, first, outs);
  alignas(64) float sums[kFewRows * kOutBlock];
  if (outs < kOutBlock) std::fill(std::begin(sums), std::end(sums), 0.0f);
  ConstView weight = call.w->weight;
  int64_t first_in_weight = first;
  if (is_quantised(weight.dtype())) {
    const ConstView block = weight.rows(first, outs);
    float* values = blocks_[static_cast<size_t>(thread)].take<float>(kOutBlock * call.w->in());
    convert(block.data(), block.dtype(), values, DType::f32, block.elements());
    weight = ConstView(values, DType::f32, block.shape());
    first_in_weight = 0;
  }
  for (int64_t row = 0; row < call.x.dim(0); row += kFewRows) {
    const int64_t rows = std::min(kFewRows, call.x.dim(0) - row);
    if (by_bf16_dot(call)) {
      dot_few_rows_bf16(call.w->weight, first, outs, call.x.rows(row, rows).as<BFloat16>(), rows, row > 0,
                        sums);
    } else {
      dot_few_rows(weight, first_in_weight, outs, x + row * padded(call), rows, padded(call), row > 0, sums);
    }
    finish_few_rows(call, row, rows, first, outs, sums);
  }
}

}  // namespace rwkvx::cpu
