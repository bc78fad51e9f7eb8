#include "model/kv_bound.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "tensor/convert.h"

namespace rwkvx {

std::vector<int32_t> most_voted(std::span<const float> votes, int64_t count, int64_t neighbours) {
  const auto n = static_cast<int64_t>(votes.size());
  std::vector<float> pooled(votes.size());
  for (int64_t i = 0; i < n; ++i) {
    const auto first = votes.begin() + std::max<int64_t>(0, i - neighbours);
    const auto last = votes.begin() + std::min(n, i + neighbours + 1);
    pooled[static_cast<size_t>(i)] = *std::max_element(first, last);
  }
  std::vector<int32_t> tokens(votes.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto more = [&](int32_t a, int32_t b) {  // of equals the later
    const float x = pooled[static_cast<size_t>(a)], y = pooled[static_cast<size_t>(b)];
    return x > y || (x == y && a > b);
  };
  const auto end = tokens.begin() + count;
  if (count < n) std::nth_element(tokens.begin(), end, tokens.end(), more);
  tokens.erase(end, tokens.end());
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

KvBound::KvBound(const KvOptions& options, int64_t heads, int64_t block, Ops& ops)
    : ops_(&ops), heads_(heads), window_(options.window) {
  // Each block drops tokens a little before the one above it, and its queries vote at other tokens.
  const int64_t slack = options.min - options.window - 1;
  const int64_t earlier = std::min(slack, block * (kVoters + kVoters / 4));
  max_ = options.max - earlier;
  min_ = options.min - earlier;
  votes_ = Buffer(ops.real(), {heads, candidates()}, ops.allocator());
  waiting_ = Buffer(ops.real(), {kVoters, heads * kHeadSize}, ops.allocator());
}

KvBound::KvBound(const KvBound& other)
    : ops_(other.ops_),
      heads_(other.heads_),
      max_(other.max_),
      min_(other.min_),
      window_(other.window_),
      votes_(other.ops_->real(), other.votes_.view().shape(), other.ops_->allocator()),
      waiting_(other.ops_->real(), other.waiting_.view().shape(), other.ops_->allocator()),
      waiting_count_(other.waiting_count_) {
  ops_->copy(other.votes_.view().data(), votes_.view().data(), votes_.view().bytes());
  ops_->copy(other.waiting_.view().data(), waiting_.view().data(), waiting_.view().bytes());
}

KvBound& KvBound::operator=(const KvBound& other) { return *this = KvBound(other); }

void KvBound::vote(ConstView q, const KvChunks& kv) {
  const auto cast = [&](ConstView voters, int64_t first) {
    ops_->kv_vote({.q = voters, .kv = kv, .first = first, .votes = votes_});
  };
  const int64_t first = kv.length - q.dim(0);
  int64_t row = std::max<int64_t>(0, candidates() - first);  // those before have no vote
  while (row < q.dim(0)) {
    const int64_t left = q.dim(0) - row;
    if (waiting_count_ == 0 && left >= kVoters) {
      const int64_t now = left / kVoters * kVoters;
      cast(q.rows(row, now), first + row);
      row += now;
      continue;
    }
    const int64_t now = std::min(left, kVoters - waiting_count_);
    const View to = waiting_.view().rows(waiting_count_, now);
    ops_->copy(q.rows(row, now).data(), to.data(), to.bytes());
    row += now;
    waiting_count_ += now;
    if (waiting_count_ < kVoters) break;
    cast(waiting_, first + row - kVoters);
    waiting_count_ = 0;
  }
  if (kv.length == max_ && waiting_count_ > 0) {
    cast(waiting_.view().rows(0, waiting_count_), kv.length - waiting_count_);
    waiting_count_ = 0;
  }
}

Buffer KvBound::keep() {
  Buffer real(ops_->real(), votes_.view().shape()), votes(DType::f32, votes_.view().shape());
  ops_->download(votes_.view().data(), real.view().raw());
  convert(real, votes);
  std::vector<int32_t> kept;
  kept.reserve(static_cast<size_t>(heads_ * min_));
  for (int64_t h = 0; h < heads_; ++h) {
    const std::span<const float> one(votes.as<float>() + h * candidates(), static_cast<size_t>(candidates()));
    const std::vector<int32_t> tokens = most_voted(one, min_ - window_, kNeighbours);
    kept.insert(kept.end(), tokens.begin(), tokens.end());
    for (int64_t i = candidates(); i < max_; ++i) kept.push_back(static_cast<int32_t>(i));
  }
  clear();
  Buffer result(DType::i32, {heads_, min_}, ops_->allocator());
  ops_->upload(std::as_bytes(std::span(kept)), result.view().data());
  return result;
}

void KvBound::clear() {
  waiting_count_ = 0;
  const std::vector<std::byte> zeros(votes_.view().bytes());
  ops_->upload(zeros, votes_.view().data());
}

uint64_t KvBound::bytes() const { return votes_.view().bytes() + waiting_.view().bytes(); }

}  // namespace rwkvx
