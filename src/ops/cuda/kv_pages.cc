#include "ops/cuda/kv_pages.h"

#include <algorithm>

namespace rwkvx::cuda {

std::vector<KvPage> pages_of(const KvChunks& kv) {
  std::vector<KvPage> pages(kv.keys.size());
  for (size_t i = 0; i < pages.size(); ++i) {
    KvPage& page = pages[i];
    page = {kv.keys[i], kv.values[i], kv.key_sums[i], nullptr, nullptr, nullptr};
    if (kv.dtype == DType::i8) {
      page.key_scales = kv.key_scales[i];
      page.value_scales = kv.value_scales[i];
    }
    if (kv.part > 0) page.part_sums = kv.part_sums[i];
  }
  return pages;
}

namespace {

bool same(const KvPage& a, const KvPage& b) {
  return a.keys == b.keys && a.values == b.values && a.key_sums == b.key_sums &&
         a.key_scales == b.key_scales && a.value_scales == b.value_scales && a.part_sums == b.part_sums;
}

}  // namespace

const KvPage* PageTable::update(Gpu& gpu, const std::vector<KvPage>& pages) {
  if (pages.size() > capacity_) {
    capacity_ = std::max<size_t>(64, 2 * pages.size());
    table_ = Buffer(DType::u8, {static_cast<int64_t>(capacity_ * sizeof(KvPage))}, gpu.allocator());
    written_.clear();
  }
  auto* const table = static_cast<KvPage*>(table_.view().data());
  size_t first = 0, end = pages.size();
  while (first < std::min(end, written_.size()) && same(pages[first], written_[first])) ++first;
  while (end > first && end <= written_.size() && same(pages[end - 1], written_[end - 1])) --end;
  if (first < end) {
    if (written_.size() < end) written_.resize(end);
    std::copy(pages.begin() + static_cast<std::ptrdiff_t>(first),
              pages.begin() + static_cast<std::ptrdiff_t>(end),
              written_.begin() + static_cast<std::ptrdiff_t>(first));
    gpu.upload(written_.data() + first, table + first, (end - first) * sizeof(KvPage));
  }
  return table;
}

BesideStore* beside(const KvChunks& kv) {
  if (kv.derived == nullptr) return nullptr;
  auto* kept = dynamic_cast<BesideStore*>(kv.derived->get());
  if (kept == nullptr) {
    auto fresh = std::make_unique<BesideStore>();
    kept = fresh.get();
    *kv.derived = std::move(fresh);
  }
  return kept;
}

Kv on_gpu(Gpu& gpu, const KvChunks& kv) {
  const std::vector<KvPage> pages = pages_of(kv);
  Kv result;
  result.length = kv.length;
  result.chunk_size = kv.chunk_size;
  result.part = kv.part;
  result.far = kv.far;
  BesideStore* const kept = beside(kv);
  result.pages = kept != nullptr ? kept->table.update(gpu, pages) : gpu.table(std::span<const KvPage>(pages));
  return result;
}

}  // namespace rwkvx::cuda
