#include <zlib.h>

#include "file_builders.h"
#include "formats/zip_directory.h"

namespace rwkvx {
namespace {

using Claims = ZipClaims;

Bytes one(const Claims& claims) { return ZipBuilder().add("a/data.pkl", "contents", claims).finish(); }

TEST(Zip, ReadsEntriesInPlace) {
  for (bool zip64 : {false, true}) {
    Claims claims;
    claims.zip64 = zip64;
    const Bytes bytes = ZipBuilder().add("first", "one", claims).add("empty", "", claims).finish(zip64);
    const FileBytes file = in_memory(bytes);
    const auto entries = read_zip_directory(file);
    ASSERT_EQ(entries.size(), 2u);
    EXPECT_EQ(entries[0].name, "first");
    ASSERT_EQ(entries[0].size, 3u);
    EXPECT_EQ(std::memcmp(file.bytes.data() + entries[0].begin, "one", 3), 0);
    EXPECT_EQ(entries[1].name, "empty");
    EXPECT_EQ(entries[1].size, 0u);
  }
}

TEST(Zip, ACommentAtTheEndIsSkipped) {
  const std::string comment = "PK\5\6 not an end record, though it begins like one";
  Bytes bytes = one({});
  bytes.set<uint16_t>(bytes.size() - 2, static_cast<uint16_t>(comment.size()));
  bytes.raw(comment);
  EXPECT_EQ(read_zip_directory(in_memory(bytes)).size(), 1u);
}

TEST(Zip, CompressedEntriesAreRefusedSoThatNothingExpands) {
  // A real bomb: 16 MiB of zeros in 16 KiB, its sizes told truly.
  const std::string zeros(size_t{16} << 20, '\0');
  uLongf length = ::compressBound(zeros.size());
  std::string packed(length, '\0');
  ASSERT_EQ(::compress(reinterpret_cast<Bytef*>(packed.data()), &length,
                       reinterpret_cast<const Bytef*>(zeros.data()), zeros.size()),
            Z_OK);
  packed.resize(length);
  Claims bomb;
  bomb.method = 8;
  bomb.size = zeros.size();
  bomb.compressed = packed.size();
  EXPECT_REFUSED(ZipBuilder().add("a/data.pkl", packed, bomb).finish(), "\"a/data.pkl\" is compressed");
  // The same as a stored entry that claims to be larger than its bytes.
  bomb.method = 0;
  EXPECT_REFUSED(ZipBuilder().add("a/data.pkl", packed, bomb).finish(), "has two sizes");
  bomb.compressed = bomb.size;
  EXPECT_REFUSED(ZipBuilder().add("a/data.pkl", packed, bomb).finish(), "says otherwise in its own header");
  bomb.flags = zip::kFlagSizesFollow;
  EXPECT_REFUSED(ZipBuilder().add("a/data.pkl", packed, bomb).finish(), "says otherwise in its own header");
}

TEST(Zip, OverlappingEntriesAreRefused) {
  // The first entry's contents are a whole entry that the directory lists as well (as quoting bombs do).
  const std::string inner(ZipBuilder().add("b", "x").finish());
  const std::string local = inner.substr(0, inner.find("PK\1\2"));
  ZipBuilder zip;
  zip.add("a", local);
  Claims inside;
  inside.header = zip.size() - local.size();
  zip.add("b", "x", inside);
  EXPECT_REFUSED(zip.finish(), "zip entries \"a\"");
  EXPECT_REFUSED(zip.finish(), "overlap");
}

TEST(Zip, EntriesAreChecked) {
  EXPECT_REFUSED(ZipBuilder().add("a", "x").add("a", "y").finish(), "\"a\" is there twice");
  Claims claims;
  claims.flags = zip::kFlagEncrypted;
  EXPECT_REFUSED(one(claims), "is encrypted");
  claims = {};
  claims.directory_name = "b/data.pkl";
  EXPECT_REFUSED(one(claims), "\"b/data.pkl\" says otherwise");
  claims = {};
  claims.header = 1;
  EXPECT_REFUSED(one(claims), "no header at byte 1");
  claims = {};
  claims.size = 0xfffffff0u;
  EXPECT_REFUSED(one(claims), "says otherwise");
  for (uint64_t header : {uint64_t{1} << 20, uint64_t{1} << 62, UINT64_MAX}) {
    claims = {};
    claims.zip64 = true;
    claims.header = header;
    EXPECT_REFUSED(one(claims), "outside the data");
  }
  claims = {};
  claims.zip64 = true;
  claims.size = UINT64_MAX;
  EXPECT_REFUSED(one(claims), "says otherwise");
}

TEST(Zip, AnEntryThatRunsIntoTheDirectoryIsRefused) {
  Claims claims;
  claims.size = 9;
  Bytes bytes = one(claims);
  bytes.set<uint32_t>(18, 9);  // the local header agrees
  bytes.set<uint32_t>(22, 9);
  EXPECT_REFUSED(bytes, "runs past the data");
}

TEST(Zip, TheEndRecordsAreChecked) {
  const Bytes good = one({}), good64 = ZipBuilder().add("a", "x").finish(true);
  const size_t end = good.size() - 22, end64 = good64.size() - 22, locator = end64 - 20,
               record = locator - 56;
  const auto changed = [](Bytes bytes, size_t at, auto value) {
    bytes.set<decltype(value)>(at, value);
    return bytes;
  };
  EXPECT_REFUSED(good.substr(0, good.size() - 1), "no end record");
  EXPECT_REFUSED(good + "x", "no end record");
  EXPECT_REFUSED(changed(good, end + 4, uint16_t{1}), "several");
  EXPECT_REFUSED(changed(changed(good, end + 8, uint16_t{2}), end + 10, uint16_t{2}),
                 "too short for its entries");
  EXPECT_REFUSED(changed(changed(good, end + 8, uint16_t{0}), end + 10, uint16_t{0}),
                 "more entries than it says");
  EXPECT_REFUSED(changed(good, end + 16, uint32_t{0x7fffffff}), "not where its end record says");
  EXPECT_REFUSED(changed(good, end + 16, zip::kIn64), "zip64 end record is missing");
  EXPECT_REFUSED(changed(good, end + 16, uint32_t{0}), "signature");
  EXPECT_REFUSED(changed(good64, locator + 8, UINT64_MAX), "out of bounds");
  EXPECT_REFUSED(changed(good64, locator + 8, uint64_t{0}), "not where its locator says");
  EXPECT_REFUSED(changed(good64, record + 40, UINT64_MAX), "not where its end record says");
  EXPECT_REFUSED(changed(good64, record + 48, UINT64_MAX), "not where its end record says");
  EXPECT_REFUSED(changed(changed(good64, record + 24, UINT64_MAX), record + 32, UINT64_MAX), "too short");
  EXPECT_REFUSED(changed(good64, end64 + 12, uint32_t{7}), "two end records differ");
}

}  // namespace
}  // namespace rwkvx
