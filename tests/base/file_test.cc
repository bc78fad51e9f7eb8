#include "base/file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <fstream>

#include "base/error.h"

namespace rwkvx {
namespace {

using testing::AllOf;
using testing::HasSubstr;

/// A folder of its own for each test, removed afterwards.
class Files : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "/rwkvx-XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Path write(std::string_view name, std::string_view text) const {
    std::ofstream(folder_ / name, std::ios::binary) << text;
    return folder_ / name;
  }
  size_t entries() const {
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder_), {}));
  }
  Path folder_;
};

template <typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

using MappedFileTest = Files;

TEST_F(MappedFileTest, MapsTheBytes) {
  const auto file = MappedFile::open(write("a", std::string_view("x\0y", 3)));
  EXPECT_EQ(text_of(*file), std::string("x\0y", 3));
  EXPECT_EQ(file->path(), folder_ / "a");
}

TEST_F(MappedFileTest, AnEmptyFileIsAnEmptySpan) {
  EXPECT_TRUE(MappedFile::open(write("empty", ""))->bytes().empty());
}

TEST_F(MappedFileTest, StaysReadableWhenTheFileIsReplaced) {
  const Path path = write("a", "old");
  const auto file = MappedFile::open(path);
  AtomicFile next(path);
  next.write("new!");
  next.commit();
  EXPECT_EQ(text_of(*file), "old");
  EXPECT_EQ(read_file(path), "new!");
}

TEST_F(MappedFileTest, ErrorsNameTheFile) {
  EXPECT_THAT(message_of([&] { MappedFile::open(folder_ / "none"); }),
              AllOf(HasSubstr((folder_ / "none").string()), HasSubstr("No such file")));
  EXPECT_THAT(message_of([&] { MappedFile::open(folder_); }),
              AllOf(HasSubstr(folder_.string()), HasSubstr("directory")));
  EXPECT_THAT(message_of([&] { MappedFile::open("/dev/null"); }),
              AllOf(HasSubstr("/dev/null"), HasSubstr("not a regular file")));
}

using ReadFileTest = Files;

TEST_F(ReadFileTest, ReadsEverything) {
  std::string text;
  for (int i = 0; i < 200000; ++i) text += static_cast<char>(i);
  EXPECT_EQ(read_file(write("a", text)), text);
  EXPECT_EQ(read_file(write("empty", "")), "");
}

TEST_F(ReadFileTest, ReadsWhatIsNoRegularFile) { EXPECT_EQ(read_file("/dev/null"), ""); }

TEST_F(ReadFileTest, KeepsToItsLimit) {
  const Path path = write("a", "12345");
  EXPECT_EQ(read_file(path, 5), "12345");
  EXPECT_THAT(message_of([&] { read_file(path, 4); }),
              AllOf(HasSubstr(path.string()), HasSubstr("larger than 4 bytes")));
  EXPECT_THAT(message_of([&] { read_file("/dev/zero", 100000); }), HasSubstr("larger than 100000 bytes"));
}

TEST_F(ReadFileTest, ErrorsNameTheFile) {
  EXPECT_THAT(message_of([&] { read_file(folder_ / "none"); }), HasSubstr((folder_ / "none").string()));
  EXPECT_THAT(message_of([&] { read_file(folder_); }), HasSubstr("directory"));
}

using AtomicFileTest = Files;

TEST_F(AtomicFileTest, AppearsAtCommit) {
  const Path path = folder_ / "out";
  AtomicFile file(path);
  file.write("ab");
  file.write("cd");
  EXPECT_EQ(file.size(), 4u);
  EXPECT_FALSE(std::filesystem::exists(path));
  file.commit();
  EXPECT_EQ(read_file(path), "abcd");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(AtomicFileTest, WithoutCommitNothingChanges) {
  const Path path = write("out", "before");
  {
    AtomicFile file(path);
    file.write(std::string(3 << 20, 'x'));
    EXPECT_EQ(entries(), 2u);
  }
  EXPECT_EQ(read_file(path), "before");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(AtomicFileTest, KeepsTheOrderOfSmallAndLargeWrites) {
  const std::string large(3 << 20, 'L');
  AtomicFile file(folder_ / "out");
  file.write("small");
  file.write(large);
  file.write("end");
  file.commit();
  EXPECT_EQ(read_file(folder_ / "out"), "small" + large + "end");
}

TEST_F(AtomicFileTest, OverwritesAHeader) {
  AtomicFile file(folder_ / "out");
  file.write("????body");
  file.write_at(0, std::as_bytes(std::span<const char>("head", 4)));
  file.write(" more");  // goes on at the end
  file.commit();
  EXPECT_EQ(read_file(folder_ / "out"), "headbody more");
}

TEST_F(AtomicFileTest, TwoWritersOfOneTargetDoNotMix) {
  AtomicFile one(folder_ / "out"), two(folder_ / "out");
  one.write("one");
  two.write("two");
  one.commit();
  EXPECT_EQ(read_file(folder_ / "out"), "one");
  two.commit();
  EXPECT_EQ(read_file(folder_ / "out"), "two");
  EXPECT_EQ(entries(), 1u);
}

TEST_F(AtomicFileTest, ErrorsNameTheTarget) {
  const Path path = folder_ / "no" / "out";
  EXPECT_THAT(message_of([&] { AtomicFile file(path); }),
              AllOf(HasSubstr(path.string()), HasSubstr("No such file")));
}

TEST_F(AtomicFileTest, DoesNotReplaceWhatIsNoRegularFile) {
  std::filesystem::create_directory(folder_ / "out");
  write("out/inside", "kept");
  ASSERT_EQ(::mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  std::filesystem::create_symlink("/dev/null", folder_ / "device");
  for (const char* name : {"out", "pipe", "device"}) {
    EXPECT_THAT(message_of([&] { AtomicFile file(folder_ / name); }), HasSubstr((folder_ / name).string()));
  }
  EXPECT_EQ(read_file(folder_ / "out" / "inside"), "kept");
  EXPECT_TRUE(std::filesystem::is_fifo(folder_ / "pipe"));
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "device"));
  EXPECT_EQ(entries(), 3u);
}

TEST_F(AtomicFileTest, ReplacesWhatASymbolicLinkPointsTo) {
  std::filesystem::create_directory(folder_ / "elsewhere");
  write("elsewhere/real", "before");
  std::filesystem::create_symlink("elsewhere/real", folder_ / "link");
  AtomicFile file(folder_ / "link");
  file.write("after");
  file.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
  EXPECT_EQ(read_file(folder_ / "elsewhere" / "real"), "after");
}

TEST_F(AtomicFileTest, KeepsThePermissionsOfWhatItReplaces) {
  namespace fs = std::filesystem;
  const Path path = write("out", "before");
  fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
  AtomicFile file(path);
  file.write("after");
  file.commit();
  EXPECT_EQ(fs::status(path).permissions(), fs::perms::owner_read | fs::perms::owner_write);
}

/// Lets no file of this process grow beyond a size, which fails writes as a full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_F(AtomicFileTest, AFullDiskLeavesTheTargetAlone) {
  const Path path = write("out", "before");
  const std::string text(2 << 20, 'x');
  {
    FileSizeLimit limit(1 << 20);
    AtomicFile file(path);
    EXPECT_THAT(message_of([&] { file.write(text); }),
                AllOf(HasSubstr(path.string()), HasSubstr("left as it was")));
  }
  {
    FileSizeLimit limit(100);
    AtomicFile file(path);
    file.write(std::string_view(text).substr(0, 1000));  // waits in memory until commit() flushes it
    EXPECT_THAT(message_of([&] { file.commit(); }), HasSubstr("left as it was"));
  }
  EXPECT_EQ(read_file(path), "before");
  EXPECT_EQ(entries(), 1u);
}

}  // namespace
}  // namespace rwkvx
