/// Which chunks a query sees: those with the largest gates.
#if defined(RWKVX_OPS_CPU_CHUNK_CHOICE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef RWKVX_OPS_CPU_CHUNK_CHOICE_INL_H_
#undef RWKVX_OPS_CPU_CHUNK_CHOICE_INL_H_
#else
#define RWKVX_OPS_CPU_CHUNK_CHOICE_INL_H_
#endif

#include <algorithm>

#include "hwy/cache_control.h"
#include "ops/cpu/attention_head-inl.h"
#include "ops/cpu/gate_bounds-inl.h"

HWY_BEFORE_NAMESPACE();
namespace rwkvx::cpu::HWY_NAMESPACE {

/// A gate is a sum of 16 partial ones, pₙ = Σ q[n + 16i]·sums[n + 16i], added as a tree: p₀…₁₅ in halves,
/// again and again. Both forms below do exactly that, so that prefill and decode choose the same chunks.
HWY_INLINE float gate_of(const float* q, const float* sums) {
  constexpr int64_t kPartials = 16 / kLanes;
  V partial[kPartials];
  RWKVX_UNROLL for (int64_t p = 0; p < kPartials; ++p) partial[p] =
      hn::Mul(load(q + p * kLanes), load(sums + p * kLanes));
  RWKVX_UNROLL for (int64_t n = 16; n < N; n += 16) {
    RWKVX_UNROLL for (int64_t p = 0; p < kPartials; ++p) {
      partial[p] = hn::MulAdd(load(q + n + p * kLanes), load(sums + n + p * kLanes), partial[p]);
    }
  }
  RWKVX_UNROLL for (int64_t half = kPartials / 2; half > 0; half /= 2) {
    RWKVX_UNROLL for (int64_t p = 0; p < half; ++p) partial[p] = hn::Add(partial[p], partial[p + half]);
  }
  return sum_of_lanes(partial[0]);
}

template <int kVectors>
struct Gates {
  V of[kVectors];
  HWY_INLINE Gates() {}  // the compiler's own would be for the instruction set that all code has
};

/// Σ over the partial sums first, first + step, …, in halves.
template <int kVectors, int kFirst, int kStep>
HWY_INLINE Gates<kVectors> partial_gates(const float* q, const float* sums) {
  Gates<kVectors> result;
  if constexpr (kStep == 16) {
    RWKVX_UNROLL for (int64_t n = kFirst; n < N; n += 16) {
      const V x = set(sums[n]);
      RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
        const V column = hn::Load(F(), q + n * kQueries + v * kLanes);
        result.of[v] = n < 16 ? hn::Mul(x, column) : hn::MulAdd(x, column, result.of[v]);
      }
    }
  } else {
    const auto low = partial_gates<kVectors, kFirst, 2 * kStep>(q, sums);
    const auto high = partial_gates<kVectors, kFirst + kStep, 2 * kStep>(q, sums);
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) result.of[v] = hn::Add(low.of[v], high.of[v]);
  }
  return result;
}

/// best[slot] and its chunks, in falling order of the gate; equal gates in rising order of the chunk, since
/// chunks come in that order and only a larger gate displaces. Chunk numbers are kept as floats (they stay
/// below 2²⁴).
HWY_INLINE void insert(V gate, V chunk, int64_t slots, int64_t stride, float* best, float* best_chunk) {
  auto shift = hn::Gt(gate, load(best + (slots - 1) * stride));
  if (hn::AllFalse(F(), shift)) return;
  shift = hn::MaskFromVec(zero());
  for (int64_t slot = 0; slot < slots; ++slot) {
    const V held = load(best + slot * stride), held_chunk = load(best_chunk + slot * stride);
    shift = hn::Or(shift, hn::Gt(gate, held));  // those below move down, whatever their gate
    store(hn::IfThenElse(shift, gate, held), best + slot * stride);
    store(hn::IfThenElse(shift, chunk, held_chunk), best_chunk + slot * stride);
    gate = hn::IfThenElse(shift, held, gate);
    chunk = hn::IfThenElse(shift, held_chunk, chunk);
  }
}

/// A chunk's gate for one query, and for the block's: the largest of its parts' that are numbers.
HWY_INLINE float chunk_gate(const Head& head, int64_t row, int64_t chunk) {
  const float* sums = head.sums(chunk);
  float gate = -INFINITY;
  for (int64_t part = 0; part < head.parts(); ++part) {
    const float other = gate_of(head.query(row), sums + part * N);
    gate = other > gate ? other : gate;
  }
  return gate;
}
template <int kVectors>
HWY_INLINE Gates<kVectors> chunk_gates(const Head& head, const QueryBlock& block, int64_t chunk) {
  const float* sums = head.sums(chunk);
  Gates<kVectors> gates;
  RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) gates.of[v] = set(-INFINITY);
  for (int64_t part = 0; part < head.parts(); ++part) {
    const auto other = partial_gates<kVectors, 0, 1>(block.q, sums + part * N);
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      gates.of[v] = hn::IfThenElse(hn::Gt(other.of[v], gates.of[v]), other.of[v], gates.of[v]);
    }
  }
  return gates;
}

/// Writes the chosen chunks of rows row .. row + lanes, all in chunk `own`, for which there is a choice.
template <int kVectors>
HWY_NOINLINE void choose_many(const Head& head, const QueryBlock& block, int64_t lanes, int64_t own,
                              int32_t* chosen, AttentionScratch& scratch) {
  const int64_t slots = head.chosen_chunks, stride = kVectors * kLanes;
  float* best = scratch.best.take<float>(2 * slots * stride);
  float* best_chunk = best + slots * stride;
  std::fill(best, best + slots * stride, -INFINITY);
  std::fill(best_chunk, best_chunk + slots * stride, -1.0f);
  for (int64_t j = 0; j < own; ++j) {
    const auto gates = chunk_gates<kVectors>(head, block, j);
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      insert(gates.of[v], set(static_cast<float>(j)), slots, stride, best + v * kLanes,
             best_chunk + v * kLanes);
    }
  }
  for (int64_t lane = 0; lane < lanes; ++lane) {
    for (int64_t slot = 0; slot < slots; ++slot) {
      chosen[lane * slots + slot] = static_cast<int32_t>(best_chunk[slot * stride + lane]);
    }
  }
}

/// The same order for one query. Whether the chunk is among the best.
HWY_INLINE bool insert(float gate, int64_t chunk, int64_t slots, float* best, int32_t* chosen) {
  if (!(gate > best[slots - 1])) return false;
  int64_t slot = slots - 1;
  for (; slot > 0 && gate > best[slot - 1]; --slot) {
    best[slot] = best[slot - 1];
    chosen[slot] = chosen[slot - 1];
  }
  best[slot] = gate;
  chosen[slot] = static_cast<int32_t>(chunk);
  return true;
}

HWY_NOINLINE void choose_one(const Head& head, int64_t row, int64_t own, int32_t* chosen,
                             AttentionScratch& scratch) {
  const int64_t slots = head.chosen_chunks;
  float* best = scratch.best.take<float>(slots);
  std::fill(best, best + slots, -INFINITY);
  for (int64_t j = 0; j < own; ++j) {
    constexpr int64_t kAhead = 8;  // the sums of other chunks lie elsewhere
    const float* later = head.sums(std::min(j + kAhead, own - 1));
    for (int64_t n = 0; n < head.parts() * N; n += 16) hwy::Prefetch(later + n);
    insert(chunk_gate(head, row, j), j, slots, best, chosen);
  }
}

/// choose_one() that computes only gates whose bounds exceed what has been chosen.
HWY_NOINLINE void choose_one_bounded(const Head& head, int64_t row, int64_t own, int32_t* chosen,
                                     AttentionScratch& scratch) {
  const int64_t slots = head.chosen_chunks, parts = head.parts();
  float* best = scratch.best.take<float>(slots);
  std::fill(best, best + slots, -INFINITY);
  PackedQuery query;
  pack_query(head.query(row), *head.packed, query);
  float bar = -INFINITY;
  int64_t last = -1;
  for_each_above(*head.packed, own * parts, query, bar, [&](int64_t sum) HWY_ATTR {
    const int64_t chunk = parts == 1 ? sum : sum / parts;
    if (last == chunk) return;  // for another of its parts
    last = chunk;
    insert(chunk_gate(head, row, chunk), chunk, slots, best, chosen);
    bar = std::fmax(bar, best[slots - 1] - query.center);
  });
}

/// Whether bounds pay in a task: with them a gate is computed by itself, which costs as much as four among
/// those of a block. The first block, which has no guesses, does not count.
struct BoundsUse {
  int64_t gates = 0, computed = 0;
  bool pays() const { return gates < (1 << 14) || computed < gates / 5; }
};

/// Raises the bars to the least of the best gates for chunks that the rows before chose: `chosen` points
/// behind what is written of them.
template <int kVectors>
HWY_NOINLINE void guess_bars(const Head& head, const QueryBlock& block, int64_t row, int64_t lanes,
                             int64_t own, const int32_t* chosen, AttentionScratch& scratch,
                             PackedQueries& queries) {
  constexpr int64_t kMost = 128;
  const int64_t slots = head.chosen_chunks, stride = kVectors * kLanes;
  if (slots > kMost) return;
  const int64_t most = std::clamp(own / 32, slots, kMost);  // little beside the bounds
  const int64_t rows = std::min(row - head.begin, most / slots);
  if (rows == 0) return;
  int32_t guesses[kMost];
  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int32_t* before = chosen - (1 + i * std::min(row - head.begin, kQueries) / rows) * slots;
    for (int64_t slot = 0; slot < slots && before[slot] >= 0; ++slot) {
      if (std::find(guesses, guesses + count, before[slot]) == guesses + count)
        guesses[count++] = before[slot];
    }
  }
  if (count < slots) return;
  float* best = scratch.best.take<float>(2 * slots * stride);
  float* best_chunk = best + slots * stride;
  std::fill(best, best + 2 * slots * stride, -INFINITY);
  for (int64_t i = 0; i < count; ++i) {
    const auto gates = chunk_gates<kVectors>(head, block, guesses[i]);
    RWKVX_UNROLL for (int v = 0; v < kVectors; ++v) {
      insert(gates.of[v], zero(), slots, stride, best + v * kLanes, best_chunk + v * kLanes);
    }
  }
  // The block's queries are scaled, without rounding unless they are tiny; chunks with this very gate matter.
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (!(queries.scales[lane] > 0 && queries.errors[lane] < kLarge)) continue;
    queries.raise(lane, std::nextafter(8 * best[(slots - 1) * stride + lane], -INFINITY));
  }
}

/// choose_many() that computes only gates whose bounds exceed what has been chosen.
template <int kVectors>
HWY_NOINLINE void choose_bounded(const Head& head, const QueryBlock& block, int64_t row, int64_t lanes,
                                 int64_t own, int32_t* chosen, AttentionScratch& scratch, BoundsUse& use) {
  const int64_t slots = head.chosen_chunks, parts = head.parts();
  PackedQueries queries;
  PackedQuery query;
  for (int64_t lane = 0; lane < kVectors * kLanes; ++lane) {
    if (lane < lanes) pack_query(head.query(row + lane), *head.packed, query);
    queries.put(query, lane, lane < lanes);
  }
  guess_bars<kVectors>(head, block, row, lanes, own, chosen, scratch, queries);
  float* best = scratch.best.take<float>(lanes * slots);
  std::fill(best, best + lanes * slots, -INFINITY);
  int32_t last[kVectors * kLanes];
  std::fill(std::begin(last), std::end(last), -1);
  int64_t computed = 0;
  for_each_above<kVectors>(*head.packed, own * parts, queries, [&](int64_t sum, int64_t lane) HWY_ATTR {
    const auto chunk = static_cast<int32_t>(parts == 1 ? sum : sum / parts);
    if (lane >= lanes || last[lane] == chunk) return;  // not a number, or for another of its parts
    last[lane] = chunk;
    ++computed;
    float* gates = best + lane * slots;
    if (insert(chunk_gate(head, row + lane, chunk), chunk, slots, gates, chosen + lane * slots)) {
      queries.raise(lane, gates[slots - 1]);
    }
  });
  if (row == head.begin) return;
  use.gates += own * lanes;
  use.computed += computed;
}

HWY_NOINLINE void choose(const Head& head, const QueryBlock& block, int64_t row, int64_t lanes, int64_t own,
                         AttentionScratch& scratch, BoundsUse& use) {
  const int64_t slots = head.chosen_chunks;
  auto* chosen = scratch.chosen.take<int32_t>(0) + (row - head.begin) * slots;
  std::fill(chosen, chosen + lanes * slots, -1);
  if (slots == 0 || own == 0) return;
  const bool bounded = head.packed != nullptr && own >= kFewChunks;
  if (own <= slots) {  // all there are
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t j = 0; j < own; ++j) chosen[lane * slots + j] = static_cast<int32_t>(j);
    }
  } else if (lanes < kFewQueries) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      (bounded ? choose_one_bounded : choose_one)(head, row + lane, own, chosen + lane * slots, scratch);
    }
  } else if (bounded && use.pays()) {
    if (lanes <= kLanes) {
      choose_bounded<1>(head, block, row, lanes, own, chosen, scratch, use);
    } else {
      choose_bounded<kQueryVectors>(head, block, row, lanes, own, chosen, scratch, use);
    }
  } else if (lanes <= kLanes) {
    choose_many<1>(head, block, lanes, own, chosen, scratch);
  } else {
    choose_many<kQueryVectors>(head, block, lanes, own, chosen, scratch);
  }
}

}  // namespace rwkvx::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
