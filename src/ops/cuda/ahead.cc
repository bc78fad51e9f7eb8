#include "ops/cuda/ahead.h"

#include <algorithm>
#include <cstdlib>

namespace rwkvx::cuda {
namespace {

int64_t ahead_bytes() {
  static const int64_t bytes = [] {
    const char* const text = std::getenv("RWKVX_AHEAD_MB");
    return text != nullptr ? std::atoll(text) << 20 : ReadingOrder::kBytes;
  }();
  return bytes;
}
bool ahead_rows() {
  static const bool on = [] {
    const char* const text = std::getenv("RWKVX_AHEAD_ROWS");
    return text == nullptr || *text != '0';
  }();
  return on;
}

ReadingOrder::Matrix matrix_of(const FewRowsCall& call) {
  const GpuMatrix& m = *call.w;
  const auto* body = static_cast<const uint8_t*>(m.body);
  if (m.input_major) {
    const auto row_bytes = static_cast<uint32_t>(m.out * info(m.type).block_bytes);
    return {body, nullptr, m.in * row_bytes, 0, call.x.dim(0) == 1 ? call.x.data() : nullptr, row_bytes};
  }
  const WeightRows rows = weight_rows(m);
  return {body,
          reinterpret_cast<const uint8_t*>(m.scales),
          m.out * rows.row_bytes,
          m.out * rows.row_scales * 2,
          nullptr,
          0};
}

bool same(const std::vector<ReadingOrder::Matrix>& noted, std::span<const FewRowsCall> calls) {
  if (noted.size() != calls.size()) return false;
  for (size_t i = 0; i < calls.size(); ++i) {
    const ReadingOrder::Matrix now = matrix_of(calls[i]);
    if (noted[i].body != now.body || noted[i].x != now.x) return false;
  }
  return true;
}

}  // namespace

void ReadingOrder::learn() {
  forget();
  mode_ = Mode::learning;
}

ReadingOrder::Launches ReadingOrder::learned() {
  Launches all = std::move(launches_);
  forget();
  return all;
}

void ReadingOrder::forget() {
  mode_ = Mode::none;
  launches_.clear(), stretches_.clear(), begins_.clear();
  done_ = 0;
  fetched_ = 0;
}

void ReadingOrder::follow(const Launches& launches) {
  forget();
  mode_ = Mode::following;
  launches_ = launches;
  int64_t end = 0;
  const auto add = [&](const uint8_t* at, int64_t bytes) {
    bytes = bytes / 16 * 16;
    if (bytes == 0) return;
    stretches_.push_back({at, end, bytes});
    end += bytes;
  };
  for (const auto& launch : launches_) {
    begins_.push_back(end);
    for (const Matrix& matrix : launch) {
      if (matrix.x != nullptr) continue;
      add(matrix.body, matrix.bytes);
      add(matrix.scales, matrix.scale_bytes);
    }
  }
  begins_.push_back(end);
}

Ahead ReadingOrder::next(std::span<const FewRowsCall> calls) {
  if (mode_ == Mode::none) return {};
  if (mode_ == Mode::learning) {
    auto& launch = launches_.emplace_back();
    for (const FewRowsCall& call : calls) launch.push_back(matrix_of(call));
    return {};
  }
  if (done_ >= launches_.size() || !same(launches_[done_], calls)) {
    forget();
    return {};
  }
  const int64_t later = begins_[++done_], end = std::min(later + ahead_bytes(), begins_.back());
  fetched_ = std::max(fetched_, later);
  Ahead ahead;
  for (const Stretch& stretch : stretches_) {
    if (stretch.begin + stretch.bytes <= fetched_) continue;
    if (fetched_ >= end || ahead.count == kAheadRanges) break;
    const int64_t skipped = fetched_ - stretch.begin;
    const int64_t bytes = (std::min(stretch.bytes, end - stretch.begin) - skipped) / 16 * 16;
    if (bytes == 0) break;
    ahead.of[ahead.count++] = {stretch.at + skipped, static_cast<uint32_t>(bytes)};
    fetched_ += bytes;
  }
  return ahead;
}

RowsAhead ReadingOrder::rows_behind(const FewRowsCall& call) const {
  if (mode_ != Mode::following || done_ >= launches_.size() || !ahead_rows()) return {};
  for (const Matrix& matrix : launches_[done_]) {
    if (matrix.x == call.y.data()) return {matrix.body, matrix.row_bytes};
  }
  return {};
}

}  // namespace rwkvx::cuda
