#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace rwkvx {

using Path = std::filesystem::path;

/// A file mapped read-only; unmapped with the last owner. Empty files map to an empty span.
class MappedFile {
 public:
  /// Errors: the file does not exist, is not a regular file, or cannot be read.
  static std::shared_ptr<const MappedFile> open(const Path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const Path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  MappedFile(Path path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  Path path_;
  const std::byte* data_;
  size_t size_;
};

/// Writes beside the target and renames into place at commit(), so that a crash or an error never leaves half
/// a file under the real name. Destroyed without commit: the temporary file is removed and the target
/// untouched. A file that is replaced keeps its permissions; a symbolic link stays one.
class AtomicFile {
 public:
  /// Errors: a folder that is not there or not writable; a target that is no regular file (a device, a pipe).
  explicit AtomicFile(const Path& target);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Overwrites bytes already written (headers whose contents are known last).
  void write_at(uint64_t offset, std::span<const std::byte> bytes);
  uint64_t size() const { return size_; }
  /// The temporary file, for libraries that write by name. The file exists and is empty.
  const Path& temporary() const { return temporary_; }
  /// Flushes to disk and renames. Errors: a full disk, a directory gone; the target is then untouched.
  void commit();

 private:
  void flush();
  Path target_, destination_, temporary_;  // as named; with links resolved; beside that
  int fd_ = -1;
  uint64_t size_ = 0;
  std::string pending_;
};

/// Throws now what AtomicFile would throw after long work.
inline void check_writable(const Path& target) { const AtomicFile probe(target); }

/// The whole file as bytes. `limit` guards against reading something enormous by mistake.
std::string read_file(const Path& path, uint64_t limit = uint64_t{1} << 34);

}  // namespace rwkvx
