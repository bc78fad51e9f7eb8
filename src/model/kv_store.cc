#include "model/kv_store.h"

namespace rwkvx {

KvStore::KvStore(int64_t heads, int64_t chunk_size, DType dtype, Ops& ops)
    : heads_(heads), chunk_size_(chunk_size), dtype_(dtype), ops_(&ops) {}

std::shared_ptr<KvStore::Page> KvStore::new_page() const {
  auto page = std::make_shared<Page>();
  page->keys_values = Buffer(dtype_, {2, heads_, chunk_size_, kHeadSize}, ops_->allocator());
  page->key_sums = Buffer(ops_->real(), {heads_, kHeadSize}, ops_->allocator());
  return page;
}

void KvStore::point_at(size_t index) {
  Page& page = *pages_[index];
  const View keys_values = page.keys_values.view();
  keys_[index] = keys_values.data();
  values_[index] = keys_values.rows(1, 1).data();
  key_sums_[index] = page.key_sums.view().data();
}

void KvStore::extend(int64_t tokens) {
  if (length_ % chunk_size_ != 0 && pages_.back().use_count() > 1) {
    const std::shared_ptr<Page> shared = std::move(pages_.back());
    pages_.back() = new_page();
    ops_->copy(shared->keys_values.view().data(), pages_.back()->keys_values.view().data(),
               shared->keys_values.view().bytes());
    ops_->copy(shared->key_sums.view().data(), pages_.back()->key_sums.view().data(),
               shared->key_sums.view().bytes());
    point_at(pages_.size() - 1);
  }
  length_ += tokens;
  const auto needed = static_cast<size_t>((length_ + chunk_size_ - 1) / chunk_size_);
  while (pages_.size() < needed) {
    pages_.push_back(new_page());
    for (auto* pointers : {&keys_, &values_, &key_sums_}) pointers->push_back(nullptr);
    point_at(pages_.size() - 1);
  }
}

KvChunks KvStore::chunks() const { return {chunk_size_, length_, dtype_, keys_, values_, key_sums_}; }

void KvStore::clear() {
  length_ = 0;
  pages_.clear();
  for (auto* pointers : {&keys_, &values_, &key_sums_}) pointers->clear();
}

uint64_t KvStore::bytes() const {
  uint64_t total = 0;
  for (const auto& page : pages_) total += page->keys_values.view().bytes() + page->key_sums.view().bytes();
  return total;
}

}  // namespace rwkvx
