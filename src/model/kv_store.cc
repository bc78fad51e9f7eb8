#include "model/kv_store.h"

#include <algorithm>

#include "tensor/host_pages.h"

namespace rwkvx {

KvMemory::KvMemory(const KvOptions& options, Ops& ops, int64_t stores) : memory_(&ops.allocator()) {
  if (options.policy == KvPolicy::host && &ops.host_memory() != memory_) host_ = &ops.host_memory();
  maps_full_pages_ = options.policy == KvPolicy::disk && !ops.reads_host_memory();
  if (host_ != nullptr || maps_full_pages_) {
    near_bytes_ = static_cast<uint64_t>(1e9 * options.near_gb / static_cast<double>(stores));
  }
  if (options.policy != KvPolicy::disk) return;
  file_.emplace(options.disk_folder());
  observer_.file = &*file_;
}

namespace {

/// Whether a chunk's memory begins in small pages, since chunks of many short conversations stay nearly
/// empty, and goes into huge ones when it is full, which are read faster.
bool has_huge_pages(const Allocator* memory, size_t bytes) {
  return memory == &host_allocator() && bytes >= kHugePage;
}

}  // namespace

Allocator& KvMemory::pages(size_t bytes) {
  if (file_ && !maps_full_pages_) return *file_;
  return has_huge_pages(memory_, bytes) ? small_page_allocator() : *memory_;
}

Allocator* KvMemory::full_pages(size_t bytes) {
  if (maps_full_pages_) return &*file_;
  if (host_ != nullptr) return host_;
  return !file_ && has_huge_pages(memory_, bytes) ? memory_ : nullptr;
}

KvStore::KvStore(int64_t heads, int64_t chunk_size, int64_t block, const KvOptions& options,
                 std::shared_ptr<KvMemory> memory, Ops& ops)
    : heads_(heads),
      chunk_size_(chunk_size),
      part_(options.part_of(chunk_size)),
      dtype_(options.dtype.value_or(ops.kv_type(ops.active()))),
      ops_(&ops),
      memory_(std::move(memory)) {
  if (options.policy == KvPolicy::bounded) bound_.emplace(options, heads, block, ops);
}

std::shared_ptr<KvStore::Page> KvStore::new_page(Allocator& rows) const {
  auto page = std::make_shared<Page>();
  page->memory = memory_;
  page->rows = Buffer(DType::u8, {static_cast<int64_t>(page_bytes())}, rows);
  page->key_sums = Buffer(ops_->real(), {heads_, kHeadSize}, ops_->allocator());
  if (part_ > 0) {
    page->part_sums = Buffer(ops_->real(), {heads_, chunk_size_ / part_, kHeadSize}, ops_->allocator());
  }
  return page;
}

uint64_t KvStore::token_bytes() const {
  return 2 * (bytes_of(dtype_, heads_ * kHeadSize) +
              (dtype_ == DType::i8 ? bytes_of(DType::f32, heads_) : uint64_t{0}));
}

void KvStore::point_at(size_t index) {
  Page& page = *pages_[index];
  auto* const rows = static_cast<std::byte*>(page.rows.view().data());
  const uint64_t part = bytes_of(dtype_, heads_ * chunk_size_ * kHeadSize);
  keys_[index] = rows;
  values_[index] = rows + part;
  key_sums_[index] = page.key_sums.view().data();
  part_sums_[index] = page.part_sums.view().data();
  if (dtype_ != DType::i8) return;
  auto* const scales = reinterpret_cast<float*>(rows + 2 * part);
  key_scales_[index] = scales;
  value_scales_[index] = scales + heads_ * chunk_size_;
}

/// `tokens` are about to be written to it.
void KvStore::append_page(int64_t tokens) {
  Allocator* const full = memory_->full_pages(page_bytes());
  const bool settled = full != nullptr && !memory_->full_pages_are_far() && tokens >= chunk_size_ / 2;
  auto page = new_page(settled ? *full : memory_->pages(page_bytes()));
  page->settled = settled;
  for (auto* pointers : {&keys_, &values_, &key_sums_, &part_sums_}) pointers->reserve(pages_.size() + 1);
  for (auto* pointers : {&key_scales_, &value_scales_}) pointers->reserve(pages_.size() + 1);
  pages_.push_back(std::move(page));
  for (auto* pointers : {&keys_, &values_, &key_sums_, &part_sums_}) pointers->push_back(nullptr);
  if (dtype_ == DType::i8) {
    for (auto* pointers : {&key_scales_, &value_scales_}) pointers->push_back(nullptr);
  }
  point_at(pages_.size() - 1);
}

std::shared_ptr<KvStore::Page> KvStore::copy_of(const Page& from, Allocator& rows) const {
  auto page = new_page(rows);
  const auto copy = [&](const Buffer& old, Buffer& own) {
    if (own) ops_->copy(old.view().data(), own.view().data(), own.view().bytes());
  };
  copy(from.rows, page->rows);
  copy(from.key_sums, page->key_sums);
  copy(from.part_sums, page->part_sums);
  return page;
}

void KvStore::own_page(size_t index, bool copy) {
  if (pages_[index].use_count() == 1) return;
  pages_[index] =
      copy ? copy_of(*pages_[index], memory_->pages(page_bytes())) : new_page(memory_->pages(page_bytes()));
  point_at(index);
}

int64_t KvStore::room() const {
  return bound_ ? bound_->max() - length_ : std::numeric_limits<int64_t>::max() - length_;
}

void KvStore::settle() {
  Allocator* const to = memory_->full_pages(page_bytes());
  if (to == nullptr) return;
  const auto full = static_cast<size_t>(length_ / chunk_size_);
  const bool moves = settled_ < full;
  for (; settled_ < full; ++settled_) {
    std::shared_ptr<Page>& page = pages_[settled_];
    if (page->settled) continue;
    if (page.use_count() == 1) {
      Buffer rows(DType::u8, page->rows.view().shape(), *to);
      ops_->copy(page->rows.view().data(), rows.view().data(), rows.view().bytes());
      page->rows = std::move(rows);
    } else {
      page = copy_of(*page, *to);
    }
    page->settled = true;
    point_at(settled_);
  }
  if (moves && memory_->maps_full_pages()) ops_->synchronize();  // the host reads them from now on
}

void KvStore::reserve(int64_t tokens) {
  settle();
  const size_t needed = pages_for(length_ + std::min(tokens, room()));
  while (pages_.size() < needed) {
    append_page(length_ + tokens - static_cast<int64_t>(pages_.size()) * chunk_size_);
  }
  // All that is written to, and when a bounded store drops tokens all of it.
  const bool drops = tokens >= room();
  const auto last = static_cast<size_t>(length_ / chunk_size_);
  const size_t used = pages_for(length_);
  for (size_t i = drops ? 0 : last; i < needed; ++i) own_page(i, i < used);
}

void KvStore::extend(int64_t tokens) {
  RWKVX_ASSERT(tokens <= room());
  reserve(tokens);
  length_ += tokens;
  if (FileAllocator* file = memory_->file()) file->used(static_cast<uint64_t>(tokens) * token_bytes());
}

KvChunks KvStore::chunks() const {
  const size_t used = pages_for(length_);
  KvChunks kv;
  kv.chunk_size = chunk_size_;
  kv.length = length_;
  kv.dtype = dtype_;
  kv.keys = std::span(keys_).first(used);
  kv.values = std::span(values_).first(used);
  kv.key_sums = std::span(key_sums_).first(used);
  if (dtype_ == DType::i8) {
    kv.key_scales = std::span(key_scales_).first(used);
    kv.value_scales = std::span(value_scales_).first(used);
  }
  kv.part = part_;
  kv.part_sums = std::span(part_sums_).first(part_ > 0 ? used : 0);
  kv.observer = memory_->observer();
  kv.derived = &derived_.of;
  kv.far = memory_->full_pages_are_far() ? static_cast<int64_t>(settled_) : 0;
  kv.far_mapped = memory_->maps_full_pages();
  kv.near_bytes = memory_->near_bytes();
  return kv;
}

void KvStore::observe(ConstView q) {
  if (!bound_) return;
  bound_->vote(q, chunks());
  if (length_ < bound_->max()) return;
  for (size_t i = 0; i < pages_for(bound_->min()); ++i) own_page(i, true);
  const Buffer kept = bound_->keep(chunks());
  derived_.of.reset();
  ops_->kv_keep(chunks(), kept);
  length_ = bound_->min();
}

void KvStore::clear() {
  length_ = 0;
  settled_ = 0;
  derived_.of.reset();
  pages_.clear();
  for (auto* pointers : {&keys_, &values_, &key_sums_, &part_sums_}) pointers->clear();
  for (auto* pointers : {&key_scales_, &value_scales_}) pointers->clear();
  if (bound_) bound_->clear();
}

uint64_t KvStore::bytes() const {
  uint64_t total = bound_ ? bound_->bytes() : 0;
  for (const auto& page : pages_)
    total += page->rows.view().bytes() + page->key_sums.view().bytes() + page->part_sums.view().bytes();
  return total;
}

}  // namespace rwkvx
