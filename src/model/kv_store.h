#pragma once

#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "model/kv_bound.h"
#include "model/kv_options.h"
#include "ops/ops.h"
#include "tensor/file_allocator.h"

namespace rwkvx {

/// Where the pages of a state's KV stores lie; they keep it alive. A state and its forks share one.
class KvMemory {
 public:
  /// Of `stores` stores. Errors: those of FileAllocator.
  KvMemory(const KvOptions& options, Ops& ops, int64_t stores = 1);
  /// For pages of so many bytes.
  Allocator& pages(size_t bytes);
  /// Where they go once they are full; null: they stay.
  Allocator* full_pages(size_t bytes);
  /// Whether that is not where the backend computes.
  bool full_pages_are_far() const { return maps_full_pages_ || host_ != nullptr; }
  /// Whether that is a mapped file which the backend's kernels cannot read.
  bool maps_full_pages() const { return maps_full_pages_; }
  /// For copies of full pages of one store, near to what reads them.
  uint64_t near_bytes() const { return near_bytes_; }
  FileAllocator* file() { return file_ ? &*file_ : nullptr; }
  ReadObserver* observer() { return file_ ? &observer_ : nullptr; }

 private:
  struct Observer final : ReadObserver {
    FileAllocator* file = nullptr;
    void read(const void* data, uint64_t bytes, int64_t readers) noexcept override {
      file->used(bytes);
      // Many queries read all of a chunk that few of the last segment's did. A single one finds most mapped.
      if (readers > 1) file->map(data, bytes);
    }
  };
  Allocator* memory_;
  Allocator* host_ = nullptr;
  uint64_t near_bytes_ = 0;
  bool maps_full_pages_ = false;
  std::optional<FileAllocator> file_;
  Observer observer_;
};

/// Keys, values and key sums of one sparse block for one sequence, paged by chunk; appending costs one row
/// and copies nothing that exists. Copies share pages; a shared page is cloned before it is written to.
///
/// Every append is extend(), kv_append, chunk_attention, observe(), of at most room() tokens.
class KvStore {
 public:
  /// `block` is the sparse block's number: bounded stores of different blocks do their work at different
  /// tokens.
  KvStore(int64_t heads, int64_t chunk_size, int64_t block, const KvOptions& options,
          std::shared_ptr<KvMemory> memory, Ops& ops);

  /// Tokens stored: all that were appended, fewer when the store is bounded.
  int64_t length() const { return length_; }
  DType dtype() const { return dtype_; }
  int64_t heads() const { return heads_; }
  int64_t chunk_size() const { return chunk_size_; }
  /// Of pages, on disk too.
  uint64_t bytes() const;
  /// Of the temporary file that the stores of a state share.
  uint64_t file_bytes() const { return memory_->file() != nullptr ? memory_->file()->file_bytes() : 0; }
  /// What one token takes in its page.
  uint64_t token_bytes() const;

  /// Memory for `tokens` more. Errors: no room, on the disk or in memory; nothing has changed then.
  void reserve(int64_t tokens);
  /// Tokens that may be appended before observe().
  int64_t room() const;
  /// Moves full pages to where they belong; reserve() does so too. Errors: no room there; nothing is lost.
  void settle();
  /// Counts `tokens` more as stored; kv_append writes them. Errors: as reserve(), if that was not called.
  void extend(int64_t tokens);
  /// What operations take. Valid until the next call that is not const.
  KvChunks chunks() const;
  /// The queries [R, C] of the tokens just appended: a bounded store lets them vote, and drops tokens when it
  /// is full.
  void observe(ConstView q);
  void clear();

  /// Votes of a bounded store; null otherwise.
  KvBound* bound() { return bound_ ? &*bound_ : nullptr; }
  const KvBound* bound() const { return bound_ ? &*bound_ : nullptr; }

 private:
  struct Page {
    std::shared_ptr<KvMemory> memory;  // outlives the rows
    Buffer rows;                       // bytes: keys [H, B, N], values [H, B, N]; i8: their scales [2, H, B]
    Buffer key_sums;                   // [H, N] real
    Buffer part_sums;                  // [H, B / part, N] real, or empty
    bool settled = false;              // lies where full pages belong
  };
  /// Copies start without: it is made again when it is needed.
  struct Derived {
    std::unique_ptr<KvDerived> of;
    Derived() = default;
    Derived(const Derived&) {}
    Derived(Derived&&) = default;
    Derived& operator=(const Derived&) {
      of.reset();
      return *this;
    }
    Derived& operator=(Derived&&) = default;
  };
  std::shared_ptr<Page> new_page(Allocator& rows) const;
  void append_page(int64_t tokens);
  size_t page_bytes() const { return static_cast<size_t>(token_bytes()) * static_cast<size_t>(chunk_size_); }
  std::shared_ptr<Page> copy_of(const Page& page, Allocator& rows) const;
  /// The page is this store's alone; what it holds stays only if `copy`.
  void own_page(size_t index, bool copy);
  void point_at(size_t index);
  size_t pages_for(int64_t tokens) const {
    return static_cast<size_t>((tokens + chunk_size_ - 1) / chunk_size_);
  }

  int64_t heads_, chunk_size_, part_;
  DType dtype_;
  Ops* ops_;
  std::shared_ptr<KvMemory> memory_;
  std::optional<KvBound> bound_;
  int64_t length_ = 0;
  size_t settled_ = 0;                        // pages that lie where full ones belong
  std::vector<std::shared_ptr<Page>> pages_;  // may be more than are used
  std::vector<void*> keys_, values_, key_sums_, part_sums_;
  std::vector<float*> key_scales_, value_scales_;  // i8 only
  mutable Derived derived_;
};

}  // namespace rwkvx
