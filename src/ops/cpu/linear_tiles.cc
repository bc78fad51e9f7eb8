#include "ops/cpu/linear_tiles.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/assert.h"
#include "base/divide.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/linear_decode.h"
#include "ops/cpu/tile_weights.h"

namespace rwkvx::cpu {

namespace {

constexpr int64_t kMostRows = 1024;  // of a part
constexpr int64_t kMostOuts = 256, kLeastOuts = kStripColumns;
/// Inputs of a strip at a time, so that it and the rows' inputs stay in the second cache.
constexpr int64_t kMostInputs = 1024;

int64_t padded(int64_t in) { return ceil_div(in, kTileDepth) * kTileDepth; }
constexpr size_t kMostInputsShifted = 8;
/// Elements of 32 rows of x.
int64_t block_elements(const LinearCall& call) { return kStripRows * padded(call.w->in()); }

/// The first call that has the input of call i.
size_t same_input(std::span<const TileRows::Call> calls, size_t i) {
  const ConstView& x = calls[i].linear->x;
  size_t first = 0;
  while (calls[first].linear->x.data() != x.data() || calls[first].linear->x.shape() != x.shape()) ++first;
  return first;
}

}  // namespace

TileRows::TileRows(ThreadPool& pool, const TileUnit& unit)
    : pool_(pool), unit_(unit), fill_(fill_strip()), threads_(static_cast<size_t>(pool.threads())) {}

bool TileRows::can_norm(const NormShift& norm) {
  return norm.x.dim(1) % kTileDepth == 0 && norm.y.size() <= kMostInputsShifted && !norm.normed_needed;
}

bool TileRows::can(const LinearCall& call) {
  const DType weight = call.w->weight.dtype();
  return call.x.dtype() == DType::bf16 && weight != DType::f32;
}

void TileRows::copy_rows(const Copy& copy) {
  const int64_t in = copy.call->w->in(), rows = std::min(kStripRows, copy.call->x.dim(0) - copy.row);
  const auto* x = copy.call->x.as<BFloat16>() + copy.row * in;
  BFloat16* to = copy.to;
  for (int64_t k = 0; k < in; k += kTileDepth, to += kStripRows * kTileDepth) {
    const int64_t count = std::min(kTileDepth, in - k);
    if (count == kTileDepth) {
      for (int64_t r = 0; r < rows; ++r)
        std::memcpy(to + r * kTileDepth, x + r * in + k, kTileDepth * sizeof *to);
      std::memset(to + rows * kTileDepth, 0,
                  static_cast<size_t>((kStripRows - rows) * kTileDepth) * sizeof *to);
    } else {
      std::memset(to, 0, kStripRows * kTileDepth * sizeof *to);
      for (int64_t r = 0; r < rows; ++r) std::copy_n(x + r * in + k, count, to + r * kTileDepth);
    }
  }
}

/// The calls' inputs as tiles, inputs_of_calls_.
void TileRows::prepare_inputs(std::span<const Call> calls, const NormShift* norm) {
  int64_t elements = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    const LinearCall& call = *calls[i].linear;
    if (same_input(calls, i) == i) elements += ceil_div(call.x.dim(0), kStripRows) * block_elements(call);
  }
  auto* memory = inputs_.take<BFloat16>(elements);
  inputs_of_calls_.clear();
  copies_.clear();
  for (size_t i = 0; i < calls.size(); ++i) {
    const LinearCall& call = *calls[i].linear;
    const size_t same = same_input(calls, i);
    inputs_of_calls_.push_back(same < i ? inputs_of_calls_[same] : memory);
    for (int64_t row = 0; same == i && row < call.x.dim(0);
         row += kStripRows, memory += block_elements(call)) {
      copies_.push_back({&call, row, memory});
    }
  }
  if (norm == nullptr) {
    return pool_.run_stretches(static_cast<int64_t>(copies_.size()),
                               [&](int64_t copy, int) { copy_rows(copies_[static_cast<size_t>(copy)]); });
  }
  const int64_t rows = norm->x.dim(0), width = norm->x.dim(1);
  pool_.run_stretches(ceil_div(rows, kStripRows), [&](int64_t block, int thread) {
    std::array<BFloat16*, kMostInputsShifted> to;
    size_t count = 0;
    for (const View& y : norm->y) {
      size_t i = 0;
      while (i < calls.size() && calls[i].linear->x.data() != y.data()) ++i;
      RWKVX_ASSERT(i < calls.size());
      to[count++] = inputs_of_calls_[i] + block * kStripRows * width;
    }
    const int64_t begin = block * kStripRows, end = std::min(begin + kStripRows, rows);
    norm_shift_tiles(*norm, begin, end, threads_[static_cast<size_t>(thread)].rows.take<float>(2 * width),
                     std::span(to).first(count));
  });
  if (norm->mix) keep_last_rows(*norm);
}

void TileRows::run(std::span<const Call> calls, const NormShift* norm) {
  if (calls.empty()) return;
  prepare_inputs(calls, norm);
  int64_t outs = 0;
  for (const Call& call : calls) outs += call.linear->w->out() * ceil_div(call.linear->x.dim(0), kMostRows);
  // Enough parts for every thread to get several.
  const int64_t outs_of_part =
      std::clamp(outs / (3 * pool_.threads()) / kLeastOuts * kLeastOuts, kLeastOuts, kMostOuts);
  parts_.clear();
  for (size_t i = 0; i < calls.size(); ++i) {
    const LinearCall& call = *calls[i].linear;
    const int64_t rows = call.x.dim(0), out = call.w->out();
    const BFloat16* x = inputs_of_calls_[i];
    for (int64_t row = 0; row < rows; row += kMostRows, x += kMostRows / kStripRows * block_elements(call)) {
      for (int64_t o = 0; o < out; o += outs_of_part) {
        parts_.push_back(
            {calls[i], x, row, std::min(kMostRows, rows - row), o, std::min(outs_of_part, out - o)});
      }
    }
  }
  pool_.run_stretches(static_cast<int64_t>(parts_.size()), [&](int64_t part, int thread) {
    run_part(parts_[static_cast<size_t>(part)], threads_[static_cast<size_t>(thread)]);
  });
}

void TileRows::run_part(const Part& part, ThreadState& thread) const {
  const LinearCall& call = *part.call.linear;
  const ConstView& weight = call.w->weight;
  const int64_t width = padded(call.w->in()), parts = strip_parts(weight.dtype());
  const int64_t pieces = ceil_div(width, kMostInputs) * parts;
  const int64_t blocks = ceil_div(part.rows, kStripRows), strips = ceil_div(part.outs, kStripColumns);
  const int64_t strip_elements = kStripColumns * std::min(width, kMostInputs);
  auto* weights = thread.strip.take<BFloat16>(strips * strip_elements);
  // Of one strip and block, or where the inputs come in pieces, of all.
  float* sums = thread.sums.take<float>((pieces == 1 ? 1 : strips * blocks) * kStripRows * kStripColumns);
  unit_.begin();
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t input = piece / parts * kMostInputs;
    const int64_t steps = std::min(width - input, kMostInputs) / kTileDepth;
    for (int64_t s = 0; s < strips; ++s) {
      const int64_t first = part.out + s * kStripColumns;
      fill_({weight, part.call.blocks, first, input, steps}, piece % parts, weights + s * strip_elements);
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row = part.row + i * kStripRows, rows = std::min(kStripRows, call.x.dim(0) - row);
      for (int64_t s = 0; s < strips; ++s) {
        const int64_t first = part.out + s * kStripColumns,
                      outs = std::min(kStripColumns, weight.dim(0) - first);
        // Results that need nothing more are summed where they belong, or of a rest of rows as if they were.
        const bool plain = call.y.dtype() == DType::f32 && call.activation == Activation::none &&
                           outs % (kStripColumns / 2) == 0;
        const bool in_place = plain && rows % kTileRows == 0, last = piece + 1 == pieces;
        float* y = plain ? call.y.as<float>() + row * weight.dim(0) + first : nullptr;
        float* c = in_place ? y : sums + (pieces == 1 ? 0 : (i * strips + s) * kStripRows * kStripColumns);
        if (plain && !in_place && call.add && piece == 0) {
          std::fill_n(c, kStripRows * kStripColumns, 0.0f);
          for (int64_t r = 0; r < rows; ++r) std::copy_n(y + r * weight.dim(0), outs, c + r * kStripColumns);
        }
        unit_.multiply({.a = part.x + i * block_elements(call) + input * kStripRows,
                        .row_tiles = ceil_div(rows, kTileRows),
                        .b = weights + s * strip_elements,
                        .panels = outs > kStripColumns / 2 ? 4 : 2,
                        .steps = steps,
                        .c = c,
                        .c_stride = in_place ? weight.dim(0) : kStripColumns,
                        .add = piece > 0 || (plain && call.add)});
        if (!last || in_place) continue;
        if (plain) {
          for (int64_t r = 0; r < rows; ++r) std::copy_n(c + r * kStripColumns, outs, y + r * weight.dim(0));
        } else {
          finish_few_rows(call, row, rows, first, outs, c);
        }
      }
    }
  }
  unit_.end();
}

}  // namespace rwkvx::cpu
