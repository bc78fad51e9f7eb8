#pragma once

#include <atomic>
#include <mutex>
#include <vector>

#include "base/file.h"
#include "tensor/buffer.h"

namespace rwkvx {

/// Memory in a file without a name: it grows on the disk, and what is in main memory is the kernel's cache,
/// which it drops when others need the room. Thread-safe.
///
/// Pages of the file that this process has touched count as its resident memory. `used()` counts them, and
/// lets go of all when they may be more than `resident_limit` bytes; what was written stays in the file.
class FileAllocator final : public Allocator {
 public:
  static constexpr uint64_t kResidentLimit = uint64_t{256} << 20;
  static constexpr size_t kSlabBytes = size_t{64} << 20;  ///< the file grows by so much, or by one block

  /// A file in `folder`; it is made with the first block. Errors: not a folder, not writable.
  explicit FileAllocator(Path folder, uint64_t resident_limit = kResidentLimit);
  ~FileAllocator() override;
  FileAllocator(const FileAllocator&) = delete;
  FileAllocator& operator=(const FileAllocator&) = delete;

  /// Blocks of whole memory pages, zero. Errors: the disk is full; everything else stays as it was.
  void* allocate(size_t bytes) override;
  void release(void* block, size_t bytes) noexcept override;

  /// `bytes` of blocks are about to be read, or were written.
  void used(uint64_t bytes) noexcept;
  /// Maps `bytes` of blocks at once, before they are read: cheaper than a page fault for every few pages.
  static void map(const void* data, uint64_t bytes) noexcept;
  uint64_t file_bytes() const;

 private:
  struct Slab {
    std::byte* data;
    size_t size, taken;
  };
  struct Free {
    void* block;
    size_t bytes;
  };
  void open();
  void let_go() noexcept;

  const Path folder_;
  const uint64_t resident_limit_;
  mutable std::mutex mutex_;
  int fd_ = -1;
  uint64_t file_bytes_ = 0;
  std::vector<Slab> slabs_;
  std::vector<Free> free_;
  std::atomic<uint64_t> touched_{0};
};

/// Where large temporary files belong: TMPDIR, or /var/tmp, which is a disk where /tmp is memory.
Path temporary_folder();

}  // namespace rwkvx
