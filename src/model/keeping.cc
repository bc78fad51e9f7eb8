#include "model/keeping.h"

#include <algorithm>

namespace rwkvx {
namespace {

/// One part of one block.
struct Part {
  size_t block;
  bool Keeping::*part;
  double bytes, work;  // for each row; work in FLOPs at the speed of large products
};

/// What elementwise operations and the recurrence cost more than products with as many FLOPs.
constexpr double kSlowly = 3;

void add_parts(std::vector<Part>& parts, size_t at, const BlockRef& block, const ModelConfig& c,
               const Ops& ops) {
  const auto real = static_cast<double>(info(ops.real()).block_bytes);
  const auto active = static_cast<double>(info(ops.active()).block_bytes);
  const auto C = static_cast<double>(c.channels), F = static_cast<double>(c.ffn);
  const auto H = static_cast<double>(c.heads()), N = static_cast<double>(kHeadSize);
  parts.push_back({at, &Keeping::second_half, C * real + F * active, 2 * C * (C + F)});
  if (block.sparse) {
    const double stored = ops.precision() == Precision::bf16 ? 2 : real;
    const auto slots = static_cast<double>(c.top_k - 1);
    const double keys = static_cast<double>(c.chunk_size * (2 * c.top_k - 1)) / 2;
    parts.push_back({at, &Keeping::mixing, C * (real + 2 * stored + active) + H * (real + 4 * slots),
                     6 * C * C + 4 * C * keys});
    parts.push_back({at, &Keeping::rest, C * (real + 2 * active), kSlowly * 20 * C});
    return;
  }
  const bool first = block.index == 0;
  const auto ranks =
      static_cast<double>(c.decay_rank + c.rate_rank + c.gate_rank + (first ? 0 : c.value_rank));
  const double states = N / static_cast<double>(kWkv7Interval);
  parts.push_back(
      {at, &Keeping::projections, (first ? 2 : 3) * C * real + ranks * active, 2 * C * (3 * C + ranks)});
  parts.push_back({at, &Keeping::mixing, (1 + states) * C * real, kSlowly * 10 * N * C});
  parts.push_back({at, &Keeping::rest, C * (12 * real + 8 * active), 2 * C * ranks + kSlowly * 60 * C});
}

}  // namespace

std::vector<Keeping> choose_keeping(const std::vector<BlockRef>& order, size_t lowest,
                                    const ModelConfig& config, const Ops& ops, int64_t rows, uint64_t bytes) {
  std::vector<Keeping> keeping(order.size());
  std::vector<Part> parts;
  for (size_t i = order.size(); i-- > lowest;) add_parts(parts, i, order[i], config, ops);
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    if (a.part == &Keeping::rest || b.part == &Keeping::rest) {
      if (a.part != b.part) return b.part == &Keeping::rest;
    }
    return a.work / a.bytes > b.work / b.bytes;
  });
  auto left = static_cast<double>(bytes);
  for (const Part& part : parts) {
    Keeping& block = keeping[part.block];
    const bool others = (block.projections || order[part.block].sparse) && block.mixing && block.second_half;
    const double wanted = part.bytes * static_cast<double>(rows);
    if (wanted > left || (part.part == &Keeping::rest && !others)) continue;
    left -= wanted;
    block.*part.part = true;
  }
  return keeping;
}

}  // namespace rwkvx
