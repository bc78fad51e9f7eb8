#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/error.h"

namespace rwkvx {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

Descriptor open_regular(const Path& path, struct stat& info) {
  Descriptor d{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (d.fd < 0) fail("cannot open {}: {}", path.string(), std::strerror(errno));
  if (::fstat(d.fd, &info) != 0) fail("cannot read {}: {}", path.string(), std::strerror(errno));
  if (S_ISDIR(info.st_mode)) fail("{} is a directory; a file is needed here", path.string());
  return d;
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const Path& path) {
  struct stat info {};
  Descriptor d = open_regular(path, info);
  if (!S_ISREG(info.st_mode))
    fail("{} is not a regular file and cannot be mapped; copy it to a file first", path.string());
  const auto size = static_cast<size_t>(info.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, d.fd, 0);
    if (data == MAP_FAILED) fail("cannot map {}: {}", path.string(), std::strerror(errno));
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, static_cast<const std::byte*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

AtomicFile::AtomicFile(const Path& target) : target_(target), destination_(target) {
  static std::atomic<unsigned> serial{0};
  struct stat before {};
  const bool replaces = ::stat(target.c_str(), &before) == 0;
  if (replaces && S_ISDIR(before.st_mode)) fail("{} is a directory; name a file in it", target.string());
  // Renaming would put a file in the place of a device.
  if (replaces && !S_ISREG(before.st_mode))
    fail("{} is not a regular file; write to a file instead", target.string());
  std::error_code ignored;  // a name that cannot be resolved is tried as it is
  if (Path resolved = std::filesystem::canonical(target, ignored); !ignored)
    destination_ = std::move(resolved);
  temporary_ = destination_;
  temporary_ += fmt::format(".part-{}-{}", ::getpid(), serial++);
  fd_ = ::open(temporary_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("cannot write {}: {}", target.string(), std::strerror(errno));
  if (replaces) static_cast<void>(::fchmod(fd_, before.st_mode & 0777));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) {
    ::close(fd_);
    ::unlink(temporary_.c_str());
  }
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  constexpr size_t kBuffer = size_t{1} << 20;
  size_ += bytes.size();
  if (pending_.size() + bytes.size() < kBuffer) {
    pending_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    return;
  }
  flush();
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot write {}: {}; the file was left as it was", target_.string(), std::strerror(errno));
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::flush() {
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const ssize_t n = ::write(fd_, rest.data(), rest.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot write {}: {}; the file was left as it was", target_.string(), std::strerror(errno));
    }
    rest.remove_prefix(static_cast<size_t>(n));
  }
  pending_.clear();
}

void AtomicFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  flush();
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot write {}: {}; the file was left as it was", target_.string(), std::strerror(errno));
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

void AtomicFile::commit() {
  flush();
  if (::fsync(fd_) != 0)
    fail("cannot write {}: {}; the file was left as it was", target_.string(), std::strerror(errno));
  if (::rename(temporary_.c_str(), destination_.c_str()) != 0) {
    fail("cannot replace {}: {}", target_.string(), std::strerror(errno));
  }
  ::close(fd_);
  fd_ = -1;
}

std::string read_file(const Path& path, uint64_t limit) {
  struct stat info {};
  Descriptor d = open_regular(path, info);
  std::string out;
  if (S_ISREG(info.st_mode)) {
    if (static_cast<uint64_t>(info.st_size) > limit) fail("{} is larger than {} bytes", path.string(), limit);
    out.reserve(static_cast<size_t>(info.st_size) + 1);
  }
  char block[1 << 16];
  while (true) {
    const ssize_t n = ::read(d.fd, block, sizeof block);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail("cannot read {}: {}", path.string(), std::strerror(errno));
    }
    if (n == 0) return out;
    if (out.size() + static_cast<size_t>(n) > limit) fail("{} is larger than {} bytes", path.string(), limit);
    out.append(block, static_cast<size_t>(n));
  }
}

}  // namespace rwkvx
