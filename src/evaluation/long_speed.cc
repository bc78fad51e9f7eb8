#include "evaluation/long_speed.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <random>

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

/// What a token's attention reads, and what is kept.
void count_bytes(const Model& model, const Session& session, LongSpeed& speed) {
  const ModelConfig& config = model.config();
  speed.resident_bytes = resident_bytes();
  speed.weight_bytes = weight_bytes(model.checkpoint());
  speed.state_bytes = 2 * bytes_of(model.ops().real(), config.layers * config.channels * kHeadSize);
  for (int64_t j = 0; j < config.sparse_blocks; ++j) {
    const KvStore& store = session.state().kv(j);
    const int64_t own = store.length() % config.chunk_size;
    const int64_t earlier = std::min(config.top_k - 1, store.length() / config.chunk_size);
    speed.selected_bytes += static_cast<uint64_t>(own + earlier * config.chunk_size) * store.token_bytes();
    speed.kv_bytes += store.bytes();
    speed.file_bytes = store.file_bytes();
  }
}

class RandomTokens {
 public:
  explicit RandomTokens(const ModelConfig& config) : any_(0, static_cast<int32_t>(config.vocab - 1)) {}
  int32_t one() { return any_(random_); }
  std::vector<int32_t> many(int64_t count) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) token = one();
    return tokens;
  }

 private:
  std::mt19937 random_{1};
  std::uniform_int_distribution<int32_t> any_;
};

double decode_ms(Session& session, int32_t token) {
  session.append(token);
  const auto start = Clock::now();
  session.logits();
  return 1e3 * seconds_since(start);
}

/// A token of each session at a time.
void decode_together(const Model& model, std::span<const Session> sessions, int64_t decode,
                     RandomTokens& random, LongSpeed& speed) {
  Ops& ops = model.ops();
  Arena arena(ops.allocator());
  const auto batch = static_cast<int64_t>(sessions.size());
  Buffer logits(ops.real(), {batch, model.config().vocab}, ops.allocator());
  std::vector<State> states;
  for (const Session& session : sessions) states.push_back(session.state().fork());
  speed.batch = batch;
  // The first is not counted: last pages, which forks share, are copied.
  for (int64_t n = -1; n < decode; ++n) {
    const std::vector<int32_t> tokens = random.many(batch);
    std::vector<SequenceInput> inputs;
    for (size_t i = 0; i < tokens.size(); ++i) inputs.push_back({std::span(&tokens[i], 1), &states[i]});
    const auto start = Clock::now();
    model.forward(inputs, LogitsOf::last, logits, arena);
    ops.synchronize();
    if (n >= 0) speed.decode_ms.push_back(1e3 * seconds_since(start));
  }
}

/// Seconds for reading `tokens` from an empty state: once to warm up, then the median of three times. The
/// session is behind them then.
double warm_prefill_seconds(Session& session, int64_t tokens, RandomTokens& random,
                            const Progress& progress) {
  std::vector<double> seconds;
  for (int i = 0; i < 4; ++i) {
    session.reset();
    session.append(random.many(tokens));
    const auto start = Clock::now();
    session.logits(progress);
    if (i > 0) seconds.push_back(seconds_since(start));
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[1];
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

void measure_long_speed(std::shared_ptr<const Model> model, std::span<const int64_t> lengths,
                        const LongOptions& options, const std::function<void(const LongSpeed&)>& done,
                        const Progress& progress) {
  RandomTokens random(model->config());
  std::vector<Session> sessions;
  for (int64_t i = 0; i < options.batch; ++i) sessions.emplace_back(model);
  Session& session = sessions.front();
  const double prefill_seconds =
      options.prefill > 0 ? warm_prefill_seconds(session, options.prefill, random, progress) : 0;
  if (session.length() > lengths.front()) session.reset();
  const auto all = static_cast<uint64_t>(lengths.back() * options.batch);
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int64_t length = lengths[i];
    LongSpeed speed;
    speed.context = length;
    uint64_t before = 0;
    for (const Session& reading : sessions) before += static_cast<uint64_t>(reading.length());
    for (Session& reading : sessions) {
      const int64_t tokens = length - reading.length();
      reading.append(random.many(tokens));
      const auto start = Clock::now();
      reading.logits([&](uint64_t now, uint64_t) {
        if (progress) progress(before + now, all);
      });
      before += static_cast<uint64_t>(tokens);
      if (&reading != &session) continue;
      speed.prefilled = options.prefill > 0 ? options.prefill : tokens;
      speed.prefill_seconds = options.prefill > 0 ? prefill_seconds : seconds_since(start);
    }

    if (options.batch > 1) {
      decode_together(*model, sessions, options.decode, random, speed);
      count_bytes(*model, session, speed);
      done(speed);
      continue;
    }
    // A copy shares pages until they are written to, which would be measured too.
    const bool fits = i + 1 == lengths.size() || length + options.decode < lengths[i + 1];
    std::optional<Session> copy;
    if (!fits) copy = session.fork();
    Session& decoding = fits ? session : *copy;
    for (int64_t n = 0; n < options.decode; ++n) {
      speed.decode_ms.push_back(decode_ms(decoding, random.one()));
      if (progress && n % 256 == 255) progress(static_cast<uint64_t>(length), all);
    }
    count_bytes(*model, decoding, speed);
    done(speed);
  }
}

std::vector<LongSpeed> measure_in_turn(std::shared_ptr<const Model> model, std::span<const Session> states,
                                       const TurnOptions& options, const Progress& progress) {
  RandomTokens random(model->config());
  std::vector<LongSpeed> speeds(states.size());
  std::vector<std::vector<double>> prefill_seconds(states.size());
  const uint64_t turns = states.size() * static_cast<uint64_t>(options.rounds);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    if (progress) progress(turn, turns);
    const size_t i = turn % states.size();
    LongSpeed& speed = speeds[i];
    speed.context = states[i].length();
    if (options.prefill > 0) {
      Session reading = states[i].fork();
      reading.append(random.many(options.prefill));
      const auto start = Clock::now();
      reading.logits();
      prefill_seconds[i].push_back(seconds_since(start));
    }
    Session decoding = states[i].fork();
    decode_ms(decoding, random.one());  // not counted: the last page, which the fork shares, is copied
    for (int64_t n = 0; n < options.decode; ++n) {
      speed.decode_ms.push_back(decode_ms(decoding, random.one()));
    }
    if (turn + states.size() >= turns) count_bytes(*model, decoding, speed);
  }
  for (size_t i = 0; i < states.size(); ++i) {
    if (options.prefill == 0) continue;
    std::vector<double>& seconds = prefill_seconds[i];
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2),
                     seconds.end());
    speeds[i].prefilled = options.prefill;
    speeds[i].prefill_seconds = seconds[seconds.size() / 2];
  }
  return speeds;
}

}  // namespace rwkvx
