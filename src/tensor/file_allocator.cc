#include "tensor/file_allocator.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "tensor/host_pages.h"

namespace rwkvx {
namespace {

size_t page_size() {
  static const auto size = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

}  // namespace

Path temporary_folder() {
  const char* named = std::getenv("TMPDIR");
  return named != nullptr && *named != '\0' ? Path(named) : Path("/var/tmp");
}

FileAllocator::FileAllocator(Path folder, uint64_t resident_limit)
    : folder_(std::move(folder)), resident_limit_(resident_limit) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder_, error)) {
    fail("{}: not a folder; name one for the temporary file (--kv disk:FOLDER)", folder_.string());
  }
  if (::access(folder_.c_str(), W_OK | X_OK) != 0) {
    fail("{}: the temporary file cannot be made there: {}; name another folder (--kv disk:FOLDER)",
         folder_.string(), std::strerror(errno));
  }
}

FileAllocator::~FileAllocator() {
  for (const Slab& slab : slabs_) ::munmap(slab.data, slab.size);
  if (fd_ >= 0) ::close(fd_);
}

void FileAllocator::open() {
  fd_ = ::open(folder_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd_ < 0) {  // a file system without nameless files
    std::string name = (folder_ / "rwkvx-kv-XXXXXX").string();
    fd_ = ::mkostemp(name.data(), O_CLOEXEC);
    if (fd_ >= 0) ::unlink(name.c_str());
  }
  if (fd_ < 0) {
    fail("{}: the temporary file cannot be made there: {}; name another folder (--kv disk:FOLDER)",
         folder_.string(), std::strerror(errno));
  }
}

void* FileAllocator::allocate(size_t bytes) {
  const size_t needed = whole_pages(bytes);
  const std::lock_guard lock(mutex_);
  const auto reused =
      std::find_if(free_.begin(), free_.end(), [&](const Free& f) { return f.bytes == needed; });
  if (reused != free_.end()) {
    void* block = reused->block;
    free_.erase(reused);
    std::memset(block, 0, needed);
    return block;
  }
  if (slabs_.empty() || slabs_.back().size - slabs_.back().taken < needed) {
    if (fd_ < 0) open();
    const size_t size = std::max(kSlabBytes, needed);
    slabs_.reserve(slabs_.size() + 1);  // nothing throws below but errors
    // Blocks of the disk now: writing to a mapping without them would end the process.
    const int error = ::posix_fallocate(fd_, static_cast<off_t>(file_bytes_), static_cast<off_t>(size));
    if (error != 0) {
      (void)!::ftruncate(fd_, static_cast<off_t>(file_bytes_));  // what part of it was given
      fail(
          "{}: no room for {} MB more of the context on this disk ({}); free some, or name another folder "
          "(--kv disk:FOLDER)",
          folder_.string(), size >> 20, std::strerror(error));
    }
    void* data =
        ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, static_cast<off_t>(file_bytes_));
    if (data == MAP_FAILED) {
      const int reason = errno;
      (void)!::ftruncate(fd_, static_cast<off_t>(file_bytes_));
      fail("{}: the context's file cannot be mapped: {}", folder_.string(), std::strerror(reason));
    }
    slabs_.push_back({static_cast<std::byte*>(data), size, 0});
    file_bytes_ += size;
  }
  Slab& slab = slabs_.back();
  void* block = slab.data + slab.taken;
  slab.taken += needed;
  return block;
}

void FileAllocator::release(void* block, size_t bytes) noexcept {
  const std::lock_guard lock(mutex_);
  try {
    free_.push_back({block, whole_pages(bytes)});
  } catch (...) {  // out of memory: the block is used no more
  }
}

void FileAllocator::used(uint64_t bytes) noexcept {
  if (touched_.fetch_add(bytes, std::memory_order_relaxed) + bytes > resident_limit_) let_go();
}

void FileAllocator::map(const void* data, uint64_t bytes) noexcept {
  const auto begin = reinterpret_cast<uintptr_t>(data) / page_size() * page_size();
  const size_t size = reinterpret_cast<uintptr_t>(data) + bytes - begin;
  // Linux before 5.14 does not know it: pages then come when they are touched.
  (void)::madvise(reinterpret_cast<void*>(begin), size, MADV_POPULATE_READ);
}

void FileAllocator::let_go() noexcept {
  const std::lock_guard lock(mutex_);
  if (touched_.load(std::memory_order_relaxed) <= resident_limit_) return;  // another thread did
  touched_.store(0, std::memory_order_relaxed);
  // Of a shared mapping this drops the process's view only: others that read go on, through the cache.
  for (const Slab& slab : slabs_) ::madvise(slab.data, slab.size, MADV_DONTNEED);
}

uint64_t FileAllocator::file_bytes() const {
  const std::lock_guard lock(mutex_);
  return file_bytes_;
}

}  // namespace rwkvx
