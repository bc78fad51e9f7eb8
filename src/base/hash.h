#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace rwkvx {

/// XXH3, 64 bit: checksums of our own files and fingerprints of models. Not cryptographic.
class Hash64 {
 public:
  Hash64();
  ~Hash64();
  Hash64(const Hash64&) = delete;
  Hash64& operator=(const Hash64&) = delete;
  void update(std::span<const std::byte> bytes);
  uint64_t digest() const;

 private:
  void* state_;
};

uint64_t hash64(std::span<const std::byte> bytes);

}  // namespace rwkvx
