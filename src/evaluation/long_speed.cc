#include "evaluation/long_speed.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <random>

#include "runtime/session.h"

namespace rwkvx {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

uint64_t weight_bytes(const Checkpoint& checkpoint) {
  uint64_t total = 0;
  for (const TensorSpec& spec : tensor_list(checkpoint.config)) {
    if (spec.role != Role::embedding) total += checkpoint.catalog.find(spec.name)->data.bytes();
  }
  return total;
}

}  // namespace

double LongSpeed::decode_quantile(double q) const {
  std::vector<double> sorted = decode_ms;
  std::sort(sorted.begin(), sorted.end());
  const auto last = static_cast<double>(sorted.size() - 1);
  return sorted[static_cast<size_t>(std::ceil(q * last))];
}

uint64_t resident_bytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  return file >> size >> resident ? resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE)) : 0;
}

void measure_long_speed(std::shared_ptr<const Model> model, std::span<const int64_t> lengths, int64_t decode,
                        const std::function<void(const LongSpeed&)>& done, const Progress& progress) {
  const ModelConfig& config = model->config();
  std::mt19937 random(1);
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(config.vocab - 1));
  Session session(model);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t length = lengths[i];
    LongSpeed speed;
    speed.context = length;
    speed.prefilled = length - session.length();
    std::vector<int32_t> tokens(static_cast<size_t>(speed.prefilled));
    for (int32_t& token : tokens) token = any(random);
    const auto before = static_cast<uint64_t>(session.length());
    session.append(tokens);
    const auto start = Clock::now();
    session.logits([&](uint64_t now, uint64_t) {
      if (progress) progress(before + now, static_cast<uint64_t>(lengths.back()));
    });
    speed.prefill_seconds = seconds_since(start);

    // A copy shares pages until they are written to, which would be measured too.
    const bool fits = i + 1 == lengths.size() || length + decode < lengths[i + 1];
    std::optional<Session> copy;
    if (!fits) copy = session.fork();
    Session& decoding = fits ? session : *copy;
    for (int64_t n = 0; n < decode; ++n) {
      decoding.append(any(random));
      const auto token_start = Clock::now();
      decoding.logits();
      speed.decode_ms.push_back(1e3 * seconds_since(token_start));
      if (progress && n % 256 == 255) {
        progress(static_cast<uint64_t>(length), static_cast<uint64_t>(lengths.back()));
      }
    }
    speed.resident_bytes = resident_bytes();
    speed.weight_bytes = weight_bytes(model->checkpoint());
    for (int64_t j = 0; j < config.sparse_blocks; ++j) {
      const KvStore& store = decoding.state().kv(j);
      const int64_t own = store.length() % config.chunk_size;
      const int64_t earlier = std::min(config.top_k - 1, store.length() / config.chunk_size);
      speed.selected_bytes += static_cast<uint64_t>(own + earlier * config.chunk_size) * store.token_bytes();
      speed.kv_bytes += store.bytes();
      speed.file_bytes = store.file_bytes();
    }
    done(speed);
  }
}

}  // namespace rwkvx
