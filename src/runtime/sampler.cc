#include "runtime/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace rwkvx {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 16;  // written out so that compilers vectorise without reordering sums on their own
constexpr size_t kBlock = 256;  // weights per partial sum, a multiple of kLanes

/// exp(x) for x <= 0 to about 1e-7 relative, exactly 1 at 0, and 0 below -87. Only additions and
/// multiplications: it vectorises, and libm's exp is neither the same on every platform nor fast enough for
/// 65,536 calls a token.
inline float exp_of_nonpositive(float x) {
  constexpr float kSmallest = -87.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low mantissa bits
  const float clamped = x < kSmallest ? kSmallest : x;
  const float shifted = clamped * 1.44269504f + kRound;  // x / ln 2
  const float n = shifted - kRound;
  // ln 2 in two parts, so that the remainder keeps its digits (Cody and Waite).
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float y = 1.0f / 5040.0f;  // Taylor's series; |r| <= ln 2 / 2
  y = y * r + 1.0f / 720.0f;
  y = y * r + 1.0f / 120.0f;
  y = y * r + 1.0f / 24.0f;
  y = y * r + 1.0f / 6.0f;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const uint32_t exponent = (std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127u) << 23;
  const float result = y * std::bit_cast<float>(exponent);
  return x < kSmallest ? 0.0f : result;
}

/// The largest logit. Errors: NaN, +inf, nothing but -inf.
float checked_max(std::span<const float> logits) {
  float max[kLanes];
  uint32_t ordered[kLanes];
  std::fill_n(max, kLanes, -kInfinity);
  std::fill_n(ordered, kLanes, 1u);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      max[lane] = x > max[lane] ? x : max[lane];
      ordered[lane] &= x == x ? 1u : 0u;
    }
  }
  for (; i < logits.size(); ++i) {
    max[0] = logits[i] > max[0] ? logits[i] : max[0];
    ordered[0] &= logits[i] == logits[i] ? 1u : 0u;
  }
  const float largest = *std::max_element(max, max + kLanes);
  if (*std::min_element(ordered, ordered + kLanes) == 0 || largest == kInfinity) {
    const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInfinity); });
    fail(
        "the model's logit of token {} is {}: its weights or the state are damaged, or a computation "
        "overflowed",
        bad - logits.begin(), *bad);
  }
  if (largest == -kInfinity)
    fail("the logits of all {} tokens are -inf: no token can be drawn", logits.size());
  return largest;
}

/// weights[i] = exp((logits[i] - max) / temperature); sums[b] = sum of block b. Returns the sum of all.
double weigh(std::span<const float> logits, float max, float temperature, std::vector<float>& weights,
             std::vector<double>& sums) {
  const size_t size = logits.size();
  weights.resize(size);
  // Division, because 1 / temperature overflows for the smallest temperatures.
  if (temperature == 1.0f) {
    for (size_t i = 0; i < size; ++i) weights[i] = exp_of_nonpositive(logits[i] - max);
  } else {
    for (size_t i = 0; i < size; ++i) weights[i] = exp_of_nonpositive((logits[i] - max) / temperature);
  }
  sums.clear();
  double total = 0;
  for (size_t begin = 0; begin < size; begin += kBlock) {
    const size_t end = std::min(size, begin + kBlock);
    double lanes[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(weights[i + lane]);
    }
    for (; i < end; ++i) lanes[0] += static_cast<double>(weights[i]);
    double sum = 0;
    for (double lane : lanes) sum += lane;
    sums.push_back(sum);
    total += sum;
  }
  return total;
}

/// How many weights reach the threshold, and their sum.
std::pair<size_t, double> count_and_sum(std::span<const float> weights, float threshold) {
  size_t count = 0;
  double total = 0;
  for (size_t begin = 0; begin < weights.size(); begin += kBlock) {
    const size_t end = std::min(weights.size(), begin + kBlock);
    uint32_t counts[kLanes] = {};
    float sums[kLanes] = {};
    size_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const bool reaches = weights[i + lane] >= threshold;
        counts[lane] += reaches ? 1u : 0u;
        sums[lane] += reaches ? weights[i + lane] : 0.0f;
      }
    }
    for (; i < end; ++i) {
      const bool reaches = weights[i] >= threshold;
      counts[0] += reaches ? 1u : 0u;
      sums[0] += reaches ? weights[i] : 0.0f;
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      count += counts[lane];
      total += static_cast<double>(sums[lane]);
    }
  }
  return {count, total};
}

template <typename T>
void check_option(bool good, const char* flag, const char* range, T value) {
  if (!good) throw UsageError(fmt::format("{} must be {}, not {}", flag, range, value));
}

}  // namespace

void check_sampler_options(const SamplerOptions& o) {
  const auto finite = [](float x) { return std::isfinite(x); };
  check_option(finite(o.temperature) && o.temperature >= 0, "--temperature", "0 or more", o.temperature);
  check_option(o.top_p > 0 && o.top_p <= 1, "--top-p", "in (0, 1]", o.top_p);
  check_option(o.top_k >= 0, "--top-k", "0 (no limit) or more", o.top_k);
  check_option(o.min_p >= 0 && o.min_p <= 1, "--min-p", "in [0, 1]", o.min_p);
  check_option(finite(o.presence_penalty), "--presence-penalty", "a finite number", o.presence_penalty);
  check_option(finite(o.frequency_penalty), "--frequency-penalty", "a finite number", o.frequency_penalty);
  check_option(o.penalty_decay >= 0 && o.penalty_decay <= 1, "--penalty-decay", "in [0, 1]", o.penalty_decay);
  check_option(finite(o.repetition_penalty) && o.repetition_penalty > 0, "--repetition-penalty",
               "more than 0", o.repetition_penalty);
}

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  check_sampler_options(options);
}

TokenId Sampler::sample(std::span<const float> logits) {
  if (logits.empty()) fail("there are no logits to draw a token from");
  apply_penalties(logits);
  const float max = checked_max(logits_);
  if (options_.temperature == 0) {
    return static_cast<TokenId>(std::find(logits_.begin(), logits_.end(), max) - logits_.begin());
  }
  if (options_.top_p == 1 && options_.min_p == 0 && options_.top_k == 0)
    return static_cast<TokenId>(draw(max));
  keep_likely(max);
  return ids_[draw(max)];
}

void Sampler::apply_penalties(std::span<const float> logits) {
  logits_.assign(logits.begin(), logits.end());
  if (!seen_.empty() && static_cast<size_t>(seen_.back().first) >= logits.size()) {
    fail("token {} was accepted, but the model has only {} tokens", seen_.back().first, logits.size());
  }
  const float r = options_.repetition_penalty;
  for (const auto& [id, count] : seen_) {
    float& logit = logits_[static_cast<size_t>(id)];
    if (r != 1) logit = logit > 0 ? logit / r : logit * r;
    logit -= options_.presence_penalty + count * options_.frequency_penalty;
  }
}

/// Step 3: leaves in ids_ and logits_ only the tokens that may be drawn.
void Sampler::keep_likely(float max) {
  const double total = weigh(logits_, max, 1.0f, weights_, sums_);
  const double wanted = options_.top_p < 1 ? static_cast<double>(options_.top_p) * total : kInfinity;
  const size_t most = options_.top_k > 0 ? static_cast<size_t>(options_.top_k) : logits_.size();

  // A few tokens carry nearly all probability: lower a threshold until everything that can pass lies above
  // it.
  constexpr float kStep = 1.0f / 64.0f;
  float threshold = kStep;
  while (threshold > options_.min_p && threshold > std::numeric_limits<float>::min()) {
    const auto [count, sum] = count_and_sum(weights_, threshold);
    // A hair more than needed, because these sums are rounded more coarsely.
    if (count >= most || sum >= wanted * (1 + 1e-5)) break;
    threshold *= kStep;
  }
  // Tokens without weight never pass.
  threshold = std::max({threshold, options_.min_p, std::numeric_limits<float>::min()});
  candidates_.clear();
  for (size_t i = 0; i < logits_.size(); ++i) {
    if (weights_[i] >= threshold) candidates_.push_back({logits_[i], static_cast<TokenId>(i)});
  }

  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const auto at = [this](size_t i) { return candidates_.begin() + static_cast<std::ptrdiff_t>(i); };
  if (candidates_.size() > most) {
    std::nth_element(at(0), at(most), candidates_.end(), more_likely);
    candidates_.resize(most);
  }
  // Where top-p ends, by halving as quickselect does: [0, first) stays, [last, end) goes, and `before` is the
  // weight of what stays. Sorting would be slow where the distribution is flat.
  double before = 0;
  const auto weight_of = [this](const Candidate& c) {
    return static_cast<double>(weights_[static_cast<size_t>(c.id)]);
  };
  size_t first = 0, last = candidates_.size();
  while (wanted < kInfinity && last - first > 1) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(at(first), at(middle), at(last), more_likely);
    double sum = 0;
    for (size_t i = first; i < middle; ++i) sum += weight_of(candidates_[i]);
    if (before + sum >= wanted) {
      last = middle;
    } else {
      before += sum;
      first = middle;
    }
  }
  const Candidate least = *std::max_element(at(0), at(last), more_likely);

  ids_.clear();
  for (size_t i = 0; i < logits_.size(); ++i) {
    const Candidate candidate{logits_[i], static_cast<TokenId>(i)};
    if (more_likely(least, candidate)) continue;
    logits_[ids_.size()] = candidate.logit;
    ids_.push_back(candidate.id);
  }
  logits_.resize(ids_.size());
}

/// Step 4: the index of one of logits_.
size_t Sampler::draw(float max) {
  const double total = weigh(logits_, max, options_.temperature, weights_, sums_);
  while (sums_.back() == 0) sums_.pop_back();
  double left = random_.uniform() * total;
  size_t block = 0;
  while (block + 1 < sums_.size() && left >= sums_[block]) left -= sums_[block++];
  // Rounding can leave a little behind the last token of the block: the last one with a weight takes it.
  size_t chosen = 0;
  for (size_t i = block * kBlock; i < std::min(weights_.size(), (block + 1) * kBlock); ++i) {
    const auto weight = static_cast<double>(weights_[i]);
    if (weight == 0) continue;
    chosen = i;
    if (left < weight) break;
    left -= weight;
  }
  return chosen;
}

void Sampler::accept(TokenId id) {
  if (id < 0) fail("token id {} cannot be accepted: ids start at 0", id);
  // Counts too small to matter go to zero before they become denormal, and slow.
  for (auto& [seen, count] : seen_) count = count < 1e-20f ? 0 : count * options_.penalty_decay;
  const auto place = std::lower_bound(seen_.begin(), seen_.end(), id,
                                      [](const auto& entry, TokenId x) { return entry.first < x; });
  if (place != seen_.end() && place->first == id) {
    place->second += 1;
  } else {
    seen_.insert(place, {id, 1.0f});
  }
}

std::string Sampler::save() const {
  return nlohmann::json{{"random", random_.state()}, {"seen", seen_}}.dump();
}

void Sampler::load(std::string_view saved) {
  constexpr const char* kWrong = "the saved sampler state is damaged: {}";
  const nlohmann::json json = nlohmann::json::parse(saved, nullptr, false);
  if (!json.is_object() || !json.contains("random") || !json.contains("seen")) {
    fail(kWrong, "it is not a JSON object with \"random\" and \"seen\"");
  }
  const nlohmann::json &random = json["random"], &seen = json["seen"];
  Random::State state{};
  if (!random.is_array() || random.size() != state.size()) fail(kWrong, "\"random\" is not four numbers");
  for (size_t i = 0; i < state.size(); ++i) {
    if (!random[i].is_number_unsigned()) fail(kWrong, "\"random\" is not four numbers of 64 bits");
    state[i] = random[i].get<uint64_t>();
  }
  if (state == Random::State{}) fail(kWrong, "\"random\" is all zeros");

  if (!seen.is_array()) fail(kWrong, "\"seen\" is not a list");
  std::vector<std::pair<TokenId, float>> counts;
  for (const nlohmann::json& entry : seen) {
    if (!entry.is_array() || entry.size() != 2 || !entry[0].is_number_unsigned() || !entry[1].is_number()) {
      fail(kWrong, "\"seen\" is not a list of [token, count]");
    }
    const auto id = entry[0].get<uint64_t>();
    const auto count = entry[1].get<double>();
    if (id > static_cast<uint64_t>(std::numeric_limits<TokenId>::max()) ||
        (!counts.empty() && id <= static_cast<uint64_t>(counts.back().first))) {
      fail(kWrong, "the tokens of \"seen\" do not rise");
    }
    if (!(count >= 0 && count <= static_cast<double>(std::numeric_limits<float>::max()))) {
      fail(kWrong, "a count of \"seen\" is out of range");
    }
    counts.emplace_back(static_cast<TokenId>(id), static_cast<float>(count));
  }
  random_ = Random(state);
  seen_ = std::move(counts);
}

}  // namespace rwkvx
