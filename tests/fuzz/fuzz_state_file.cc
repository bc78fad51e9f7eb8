// Any bytes as a state file. An even first byte makes the rest a file whose beginning and checksum are right,
// so that what lies behind them is reached as well.
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "fuzz_file.h"
#include "model/state_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace rwkvx;
  constexpr char kMagic[] = "RWKVXST\x01";
  constexpr uint64_t kFingerprint = 1;
  static const auto ops = make_ops({"reference", Precision::f32, 1});
  ModelConfig config;
  config.layers = 1;
  config.sparse_blocks = 1;
  config.channels = 64;
  config.chunk_size = 4;
  if (size == 0) return 0;
  std::vector<uint8_t> bytes(data + 1, data + size);
  if (data[0] % 2 == 0) {
    bytes.insert(bytes.begin(), kMagic, kMagic + 8);
    const uint64_t checksum = hash64(std::as_bytes(std::span(bytes)));
    bytes.resize(bytes.size() + sizeof checksum);
    std::memcpy(bytes.data() + bytes.size() - sizeof checksum, &checksum, sizeof checksum);
  }
  const FuzzFile file(bytes.data(), bytes.size());
  State state(config, *ops);
  try {
    load_state(file.path(), state, kFingerprint);
  } catch (const Error&) {
  }
  return 0;
}
