#include "training/event_file.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
    table[i] = crc;
  }
  return table;
}

/// TFRecord's: a checksum of data that hold checksums would be weak.
uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

template <typename T>
void append_raw(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

// Protocol buffers, wire types 0 (varint), 1 (64 bit), 2 (bytes), 5 (32 bit).
void append_varint(std::string& out, uint64_t value) {
  for (; value >= 128; value >>= 7) out += static_cast<char>(value | 128);
  out += static_cast<char>(value);
}
void append_key(std::string& out, uint32_t field, uint32_t wire) { append_varint(out, field << 3 | wire); }
void append_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  append_key(out, field, 2);
  append_varint(out, bytes.size());
  out += bytes;
}

/// Event: 1 wall_time, 2 step.
std::string event_at(int64_t step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string event;
  append_key(event, 1, 1);
  append_raw(event, std::chrono::duration<double>(now).count());
  append_key(event, 2, 0);
  append_varint(event, static_cast<uint64_t>(step));
  return event;
}

}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes) {
  static constexpr std::array<uint32_t, 256> kTable = crc_table();
  uint32_t crc = ~0u;
  for (const std::byte b : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint32_t>(b)) & 255];
  return ~crc;
}

EventFile::EventFile(const Path& folder, int64_t from_step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
  path_ = folder / fmt::format("events.out.tfevents.{:010}.{:03}.{}", milliseconds / 1000,
                               milliseconds % 1000, ::getpid());
  file_ = std::fopen(path_.c_str(), "wbx");
  if (file_ == nullptr) fail("cannot write {}: {}", path_.string(), std::strerror(errno));
  std::string version = event_at(0);
  append_bytes(version, 3, "brain.Event:2");
  write(version);
  if (from_step > 0) {
    std::string start = event_at(from_step), status;
    append_key(status, 1, 0);
    append_varint(status, 1);  // SessionLog.START
    append_bytes(start, 7, status);
    write(start);
  }
}

EventFile::~EventFile() { std::fclose(file_); }

void EventFile::add(int64_t step, std::span<const Scalar> scalars) {
  std::string summary;
  for (const auto& [tag, value] : scalars) {
    std::string entry;
    append_bytes(entry, 1, tag);
    append_key(entry, 2, 5);  // simple_value
    append_raw(entry, static_cast<float>(value));
    append_bytes(summary, 1, entry);
  }
  std::string event = event_at(step);
  append_bytes(event, 5, summary);
  write(event);
}

void EventFile::write(const std::string& event) {
  std::string record;
  append_raw(record, static_cast<uint64_t>(event.size()));
  append_raw(record, masked_crc(std::string_view(record)));
  record += event;
  append_raw(record, masked_crc(event));
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0)
    fail("cannot write {}: {}", path_.string(), std::strerror(errno));
}

}  // namespace rwkvx
