// Memory in a nameless file: contents, reuse, letting go, and a disk that is full.
#include "tensor/file_allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "base/error.h"
#include "tensor/file_size_limit.h"

namespace rwkvx {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

bool all(const void* block, size_t bytes, unsigned char value) {
  const auto* p = static_cast<const unsigned char*>(block);
  return std::all_of(p, p + bytes, [&](unsigned char x) { return x == value; });
}

size_t files_in(const Path& folder) {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

uint64_t resident_bytes_of_files() {
  std::ifstream status("/proc/self/status");
  std::string word;
  uint64_t kilobytes = 0;
  while (status >> word) {
    if (word == "RssFile:" || word == "RssShmem:") {
      uint64_t n = 0;
      status >> n;
      kilobytes += n;
    }
  }
  return kilobytes * 1024;
}

TEST(FileAllocator, BlocksAreZeroApartAndReused) {
  // Of its own: other tests come and go in the common one.
  std::string own = (std::filesystem::temp_directory_path() / "rwkvx-test-XXXXXX").string();
  ASSERT_NE(mkdtemp(own.data()), nullptr);
  const Path folder = own;
  const size_t before = files_in(folder);
  FileAllocator memory(folder);
  EXPECT_EQ(memory.file_bytes(), 0u) << "no file before the first block";
  void* a = memory.allocate(5000);
  void* b = memory.allocate(1);
  EXPECT_TRUE(all(a, 5000, 0));
  std::memset(a, 1, 5000);
  std::memset(b, 2, 1);
  EXPECT_TRUE(all(a, 5000, 1));
  EXPECT_EQ(files_in(folder), before) << "the file has no name";
  const uint64_t size = memory.file_bytes();
  memory.release(a, 5000);
  void* c = memory.allocate(8000);
  EXPECT_EQ(c, a) << "of as many pages";
  EXPECT_TRUE(all(c, 8000, 0));
  EXPECT_EQ(memory.file_bytes(), size);
  EXPECT_TRUE(all(b, 1, 2));
  std::filesystem::remove_all(folder);
}

TEST(FileAllocator, BlocksLargerThanASlab) {
  FileAllocator memory(temporary_folder());
  const size_t large = FileAllocator::kSlabBytes + 12345;
  auto* block = static_cast<unsigned char*>(memory.allocate(large));
  block[0] = 1;
  block[large - 1] = 2;
  EXPECT_GE(memory.file_bytes(), large);
  EXPECT_EQ(block[0] + block[large - 1], 3);
}

TEST(FileAllocator, MapsWhatIsAboutToBeRead) {
  constexpr size_t kBytes = 16 << 20;
  FileAllocator memory(temporary_folder(), /*resident_limit=*/kBytes / 2);
  auto* block = static_cast<unsigned char*>(memory.allocate(kBytes));
  std::memset(block, 7, kBytes);
  memory.used(kBytes);  // over the limit: lets go of all
  const uint64_t before = resident_bytes_of_files();
  FileAllocator::map(block + 100, kBytes / 2);
  const uint64_t mapped = resident_bytes_of_files() - before;
  // Where the kernel cannot (Linux before 5.14), nothing is mapped and reading still works.
  EXPECT_TRUE(mapped == 0 || mapped >= kBytes / 2) << mapped;
  EXPECT_TRUE(all(block, kBytes, 7));
}

TEST(FileAllocator, LetsGoOfWhatWasTouchedAndKeepsIt) {
  constexpr size_t kBytes = 24 << 20;
  FileAllocator memory(temporary_folder(), /*resident_limit=*/kBytes / 2);
  const uint64_t before = resident_bytes_of_files();
  void* block = memory.allocate(kBytes);
  std::memset(block, 7, kBytes);
  EXPECT_GE(resident_bytes_of_files(), before + kBytes / 2);
  memory.used(kBytes);
  EXPECT_LE(resident_bytes_of_files(), before + kBytes / 4);
  EXPECT_TRUE(all(block, kBytes, 7));
}

TEST(FileAllocator, AFullDiskIsAnErrorAndLosesNothing) {
  FileAllocator memory(temporary_folder());
  void* block = memory.allocate(1 << 20);
  std::memset(block, 7, 1 << 20);
  {
    const test::FileSizeLimit limit(memory.file_bytes() + (8 << 20));
    EXPECT_THAT([&] { memory.allocate(FileAllocator::kSlabBytes); },
                ThrowsMessage<Error>(HasSubstr("no room")));
    EXPECT_THAT([&] { memory.allocate(FileAllocator::kSlabBytes); },
                ThrowsMessage<Error>(HasSubstr("--kv disk:")));
    EXPECT_NO_THROW(memory.allocate(1 << 20)) << "what the file already has";
  }
  EXPECT_TRUE(all(block, 1 << 20, 7));
  EXPECT_NO_THROW(memory.allocate(FileAllocator::kSlabBytes)) << "once there is room again";
}

TEST(FileAllocator, FoldersThatCannotBeUsed) {
  EXPECT_THAT([] { FileAllocator("/no/such/folder"); }, ThrowsMessage<Error>(HasSubstr("/no/such/folder")));
  EXPECT_THAT([] { FileAllocator("/proc/version"); }, ThrowsMessage<Error>(HasSubstr("not a folder")));
}

}  // namespace
}  // namespace rwkvx
