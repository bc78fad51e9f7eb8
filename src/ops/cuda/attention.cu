#include <algorithm>
#include <array>

#include "base/assert.h"
#include "ops/cuda/attention_near.h"
#include "ops/cuda/attention_parts.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/kv_pages.h"

namespace rwkvx::cuda {
namespace {

constexpr int64_t kFewRows = 16;                   // of a sequence: taken one by one
constexpr int64_t kMostNear = int64_t{1} << 22;    // entries of Attend::near
constexpr int64_t kMostRows = 131072;              // of a launch
constexpr int64_t kMostChosen = int64_t{1} << 26;  // numbers kept between kernels

/// Rows of the call as pieces of at most `rows` in a launch, and their sequences.
template <typename Each>
void for_pieces(Gpu& gpu, const ChunkAttention& call, int64_t rows, const Each& each) {
  Pieces pieces;
  std::array<size_t, kSequences> sequences{};
  int64_t room = rows;
  const auto flush = [&] {
    if (pieces.count > 0) each(pieces, std::span(sequences).first(static_cast<size_t>(pieces.count)));
    pieces.count = 0;
    room = rows;
  };
  for (size_t s = 0; s + 1 < call.offsets.size(); ++s) {
    const Kv kv = on_gpu(gpu, call.kv[s]);
    for (int64_t row = call.offsets[s]; row < call.offsets[s + 1];) {
      if (room == 0 || pieces.count == kSequences) flush();
      sequences[static_cast<size_t>(pieces.count)] = s;
      Piece& piece = pieces.of[pieces.count++];
      piece.kv = kv;
      piece.mapped = kv.far > 0 && call.kv[s].far_mapped ? &call.kv[s] : nullptr;
      piece.row = row;
      piece.position = kv.length - call.offsets[s + 1] + row;
      piece.rows = static_cast<int32_t>(std::min(room, call.offsets[s + 1] - row));
      piece.dense = call.top_k >= piece.chunks() ? 1 : 0;
      row += piece.rows;
      room -= piece.rows;
    }
  }
  flush();
}

/// What was chosen of far chunks comes near, where all that kernels cannot read where it lies has room.
bool bring_chosen(Gpu& gpu, const ChunkAttention& call, const Pieces& pieces,
                  std::span<const size_t> sequences, Attend& a, DType kv) {
  std::array<NearChunks::Slots, kSequences> slots{};
  const bool fits = a.chosen != nullptr && pieces.rows() * a.heads * a.stride <= kMostNear;
  for (size_t p = 0; p < sequences.size(); ++p) {
    const KvChunks& store = call.kv[sequences[p]];
    if (store.far == 0) continue;
    const int64_t choices = int64_t{pieces.of[p].rows} * a.top;
    BesideStore* const kept = fits ? beside(store) : nullptr;
    if (kept != nullptr) slots[p] = kept->near.slots(gpu, store, a.heads, choices);
    if (slots[p].count == 0 && store.far_mapped) return false;
  }
  if (fits) bring_near(gpu, pieces, a, std::span(slots).first(sequences.size()), kv);
  return true;
}

/// `few`: as few_rows_of() says.
void attend_by_row(Gpu& gpu, const ChunkAttention& call, const Pieces& pieces,
                   std::span<const size_t> sequences, bool few, Attend a, DType kv) {
  const AttendByRow rows(gpu, pieces, a, kv);
  rows.choose(a);
  const bool far = a.top > 0 && std::any_of(sequences.begin(), sequences.end(),
                                            [&](size_t s) { return call.kv[s].far > 0; });
  if (!far || (few && bring_chosen(gpu, call, pieces, sequences, a, kv))) return rows.attend(a, pieces);
  // All of some heads at a time.
  Staging staging(gpu, pieces, a.heads, kv);
  for (; a.first_head < a.heads; a.first_head += a.some_heads) {
    a.some_heads = static_cast<int32_t>(std::min<int64_t>(staging.heads(), a.heads - a.first_head));
    rows.attend(a, staging.bring(a.first_head, a.some_heads));
  }
}

/// Whether rows are taken one by one: when they are few, or when what they choose is a small part of what
/// lies far, all of which comes near for many.
bool few_rows_of(const Pieces& pieces, int64_t top) {
  if (pieces.rows() <= kFewRows * pieces.count) return true;
  int64_t far = 0;
  for (int i = 0; i < pieces.count; ++i) {
    if (pieces.of[i].mapped != nullptr) return false;  // more than have room near
    far += pieces.of[i].kv.far;
  }
  return top > 0 && far > 0 && 4 * pieces.rows() * top <= far;
}

}  // namespace

void chunk_attention(Gpu& gpu, const ChunkAttention& call, Precision precision) {
  if (call.q.dim(0) == 0) return;
  RWKVX_ASSERT(call.top_k >= 1 && !call.kv.empty());
  const int64_t heads = call.q.dim(1) / kHeadSize;
  const DType kv = call.kv[0].dtype;
  int64_t most_chunks = 1;
  bool far = false;
  for (const KvChunks& one : call.kv) {
    RWKVX_ASSERT(one.dtype == kv);
    most_chunks = std::max(most_chunks, static_cast<int64_t>(one.keys.size()));
    far = far || one.far > 0;
  }
  const int64_t top = std::min(call.top_k, most_chunks) - 1;
  const bool choosing = call.top_k < most_chunks;
  const int64_t rows =
      std::clamp<int64_t>(choosing ? kMostChosen / (heads * top + 1) : kMostRows, 1, kMostRows);
  for_pieces(gpu, call, rows, [&](Pieces& pieces, std::span<const size_t> sequences) {
    const Arena::Scope scope(gpu.scratch());
    const int64_t first = pieces.first_row(), width = heads * kHeadSize;
    const bool few = few_rows_of(pieces, top);
    Attend a{};
    a.q = call.q.as<float>() + first * width;
    a.heads = static_cast<int32_t>(heads);
    a.top = static_cast<int32_t>(top);
    a.y_bf16 = call.y.dtype() == DType::bf16;
    a.y = static_cast<std::byte*>(call.y.data()) + first * width * (a.y_bf16 ? 2 : 4);
    if (call.lse) a.lse = call.lse.as<float>() + first * heads;
    if (call.chosen && call.top_k > 1) {
      a.stride = call.top_k - 1;
      a.chosen = call.chosen.as<int32_t>() + first * heads * a.stride;
    } else if ((choosing || (far && few)) && top > 0) {
      a.stride = top;
      a.chosen = gpu.scratch().take(DType::i32, {pieces.rows(), heads, top}).as<int32_t>();
    }
    if (!few && precision == Precision::bf16 && can_attend_by_chunk(pieces, kv)) {
      choose_chunks(gpu, pieces, a);
      attend_by_chunk(gpu, pieces, a, kv);
    } else {
      attend_by_row(gpu, call, pieces, sequences, few, a, kv);
    }
  });
}

}  // namespace rwkvx::cuda
