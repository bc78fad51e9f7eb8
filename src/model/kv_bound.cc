#include "model/kv_bound.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tensor/convert.h"

namespace rwkvx {

namespace {

/// Each the largest among its neighbours.
std::vector<float> pooled(std::span<const float> scores, int64_t neighbours) {
  const auto n = static_cast<int64_t>(scores.size());
  std::vector<float> known(scores.begin(), scores.end()), out(scores.size());
  for (float& x : known) x = std::isnan(x) ? 0 : x;
  for (int64_t i = 0; i < n; ++i) {
    const auto first = known.begin() + std::max<int64_t>(0, i - neighbours);
    const auto last = known.begin() + std::min(n, i + neighbours + 1);
    out[static_cast<size_t>(i)] = *std::max_element(first, last);
  }
  return out;
}

/// Puts the `count` of `tokens` with the highest scores in front.
void put_first(std::span<int32_t> tokens, int64_t count, const std::vector<float>& scores) {
  const auto more = [&](int32_t a, int32_t b) {
    const float x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x > y || (x == y && a > b);
  };
  if (count < static_cast<int64_t>(tokens.size())) {
    std::nth_element(tokens.begin(), tokens.begin() + count, tokens.end(), more);
  }
}

}  // namespace

std::vector<int32_t> staying(std::span<const float> votes, std::span<const float> distinctness, int64_t count,
                             int64_t neighbours) {
  const int64_t voted = distinctness.empty() ? count : votes.empty() ? 0 : count / 2;
  std::vector<int32_t> tokens(std::max(votes.size(), distinctness.size()));
  std::iota(tokens.begin(), tokens.end(), 0);
  if (voted > 0) put_first(tokens, voted, pooled(votes, neighbours));
  if (count > voted) {
    put_first(std::span(tokens).subspan(static_cast<size_t>(voted)), count - voted,
              pooled(distinctness, neighbours));
  }
  tokens.resize(static_cast<size_t>(count));
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

KvBound::KvBound(const KvOptions& options, int64_t heads, int64_t block, Ops& ops)
    : ops_(&ops), heads_(heads), window_(options.window), rule_(options.rule) {
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
      rule_(other.rule_),
      votes_(other.ops_->real(), other.votes_.view().shape(), other.ops_->allocator()),
      waiting_(other.ops_->real(), other.waiting_.view().shape(), other.ops_->allocator()),
      waiting_count_(other.waiting_count_) {
  ops_->copy(other.votes_.view().data(), votes_.view().data(), votes_.view().bytes());
  ops_->copy(other.waiting_.view().data(), waiting_.view().data(), waiting_.view().bytes());
}

KvBound& KvBound::operator=(const KvBound& other) { return *this = KvBound(other); }

int64_t KvBound::voters(int64_t length) const {
  const auto from = [&](int64_t token) {
    return token < max_ ? (max_ - 1 - token) / step() + 1 : int64_t{0};
  };
  return std::max<int64_t>(0, from(candidates()) - from(length));
}

void KvBound::vote(ConstView q, const KvChunks& kv) {
  if (rule_ == KvRule::keys) return;
  const int64_t first = kv.length - q.dim(0), from = std::max(first, candidates());
  for (int64_t token = from + (max_ - 1 - from) % step(); token < kv.length; token += step()) {
    const View to = waiting_.view().rows(waiting_count_++, 1);
    ops_->copy(q.rows(token - first, 1).data(), to.data(), to.bytes());
    if (waiting_count_ < kVoters && token < max_ - 1) continue;
    ops_->kv_vote({.q = waiting_.view().rows(0, waiting_count_),
                   .kv = kv,
                   .first = token - (waiting_count_ - 1) * step(),
                   .step = step(),
                   .votes = votes_});
    waiting_count_ = 0;
  }
}

Buffer KvBound::keep(const KvChunks& kv) {
  const auto on_host = [&](ConstView scores) {
    Buffer real(ops_->real(), scores.shape()), out(DType::f32, scores.shape());
    ops_->download(scores.data(), real.view().raw());
    convert(real, out);
    return std::vector<float>(out.as<float>(), out.as<float>() + scores.elements());
  };
  std::vector<float> votes, distinctness;  // [H, candidates], or empty
  if (rule_ != KvRule::keys) votes = on_host(votes_);
  if (rule_ != KvRule::votes) {
    Buffer scores(ops_->real(), {heads_, candidates()}, ops_->allocator());
    ops_->kv_distinct({kv, scores});
    distinctness = on_host(scores);
  }
  const auto of_head = [&](const std::vector<float>& scores, int64_t h) {
    if (scores.empty()) return std::span<const float>();
    return std::span(scores).subspan(static_cast<size_t>(h * candidates()),
                                     static_cast<size_t>(candidates()));
  };
  std::vector<int32_t> kept;
  kept.reserve(static_cast<size_t>(heads_ * min_));
  for (int64_t h = 0; h < heads_; ++h) {
    const std::vector<int32_t> tokens =
        staying(of_head(votes, h), of_head(distinctness, h), min_ - window_, kNeighbours);
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
