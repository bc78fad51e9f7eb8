// TensorBoard's file format, byte by byte. tensorboard 2.x reads what this writes.
#include "training/event_file.h"

#include <gmock/gmock.h>

#include <cstring>

#include "model/support.h"

namespace rwkvx {
namespace {

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(Crc32c, PublishedValues) {
  EXPECT_EQ(crc32c(bytes("123456789")), 0xe3069283u);            // the check value of the CRC catalogue
  EXPECT_EQ(crc32c(bytes(std::string(32, '\0'))), 0x8a9136aau);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(bytes(std::string(32, '\xff'))), 0x62a8ab43u);
}

uint32_t masked(std::string_view text) {
  const uint32_t crc = crc32c(bytes(text));
  return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

/// The events of a file, checksums checked, wall times cut out.
std::vector<std::string> events(const Path& path) {
  const std::string file = read_file(path);
  std::vector<std::string> found;
  for (size_t at = 0; at < file.size();) {
    uint64_t size = 0;
    uint32_t length_crc = 0, data_crc = 0;
    std::memcpy(&size, file.data() + at, 8);
    std::memcpy(&length_crc, file.data() + at + 8, 4);
    EXPECT_EQ(length_crc, masked(file.substr(at, 8)));
    const std::string data = file.substr(at + 12, size);
    std::memcpy(&data_crc, file.data() + at + 12 + size, 4);
    EXPECT_EQ(data_crc, masked(data));
    at += 16 + size;
    EXPECT_EQ(data[0], '\x09');  // field 1, 64 bit: the wall time
    double time = 0;
    std::memcpy(&time, data.data() + 1, 8);
    EXPECT_GT(time, 1.5e9);
    found.push_back(data.substr(9));
  }
  return found;
}

TEST(EventFile, Scalars) {
  const test::TemporaryFolder folder;
  {
    EventFile file(folder / "", 0);
    const EventFile::Scalar scalars[] = {{"loss", 0.5}, {"lr", 1.0}};
    file.add(300, scalars);
  }
  ASSERT_THAT(folder.files(), ::testing::ElementsAre(::testing::StartsWith("events.out.tfevents.")));
  EXPECT_THAT(events(folder / folder.files()[0]),
              ::testing::ElementsAre(std::string("\x10\x00\x1a\x0d"
                                                 "brain.Event:2",
                                                 17),
                                     std::string("\x10\xac\x02\x2a\x18"
                                                 "\x0a\x0b\x0a\x04"
                                                 "loss\x15\x00\x00\x00\x3f"
                                                 "\x0a\x09\x0a\x02"
                                                 "lr\x15\x00\x00\x80\x3f",
                                                 29)));
}

TEST(EventFile, AResumedRunSaysSo) {
  const test::TemporaryFolder folder;
  { EventFile file(folder / "", 5); }
  EXPECT_EQ(events(folder / folder.files()[0]).at(1), std::string("\x10\x05\x3a\x02\x08\x01"));
}

}  // namespace
}  // namespace rwkvx
