#include "runtime/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "error_of.h"

namespace rwkvx {
namespace {

using testing::error_of;
using ::testing::HasSubstr;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Nothing but the softmax.
SamplerOptions plain() {
  SamplerOptions options;
  options.top_p = 1;
  return options;
}

SamplerOptions greedy() {
  SamplerOptions options;
  options.temperature = 0;
  return options;
}

std::vector<float> random_logits(uint64_t seed, size_t size, double spread) {
  Random random(seed);
  std::vector<float> logits;
  for (size_t i = 0; i < size; ++i) {
    // The sum of four is roughly normal.
    const double x = random.uniform() + random.uniform() + random.uniform() + random.uniform() - 2;
    logits.push_back(static_cast<float>(x * spread));
  }
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature = 1) {
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<double> p;
  for (float x : logits)
    p.push_back(std::exp((static_cast<double>(x) - static_cast<double>(max)) / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& x : p) x /= sum;
  return p;
}

/// The tokens that top-k, top-p and min-p leave, by sorting everything.
std::set<TokenId> naive_set(const std::vector<float>& logits, const SamplerOptions& options) {
  const std::vector<double> p = softmax(logits);
  std::vector<TokenId> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](TokenId a, TokenId b) { return logits[size_t(a)] > logits[size_t(b)]; });
  std::set<TokenId> kept;
  double before = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const double mine = p[size_t(order[rank])];
    if (options.top_k > 0 && rank >= size_t(options.top_k)) break;
    if (options.top_p < 1 && rank > 0 && before >= double(options.top_p)) break;
    if (mine < double(options.min_p) * p[size_t(order[0])]) break;
    before += mine;
    kept.insert(order[rank]);
  }
  return kept;
}

std::map<TokenId, int> draw(const std::vector<float>& logits, const SamplerOptions& options, int count) {
  Sampler sampler(options);
  std::map<TokenId, int> drawn;
  for (int i = 0; i < count; ++i) ++drawn[sampler.sample(logits)];
  return drawn;
}

/// Pearson's statistic of the drawn counts against the probabilities; tokens of probability 0 must not be
/// drawn.
double chi_square(const std::map<TokenId, int>& drawn, const std::vector<double>& p, int count) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    const auto it = drawn.find(TokenId(i));
    const double observed = it == drawn.end() ? 0 : it->second, expected = p[i] * count;
    if (p[i] == 0) {
      EXPECT_EQ(observed, 0) << "token " << i;
    } else {
      sum += (observed - expected) * (observed - expected) / expected;
    }
  }
  return sum;
}

TEST(Random, EqualsThePublishedGenerators) {
  // xoshiro256++ from the state 1 2 3 4; SplitMix64 from the seed 1234567.
  Random random(Random::State{1, 2, 3, 4});
  for (uint64_t expected : {uint64_t{41943041}, uint64_t{58720359}, uint64_t{3588806011781223},
                            uint64_t{3591011842654386}, uint64_t{9228616714210784205u}}) {
    EXPECT_EQ(random.next(), expected);
  }
  EXPECT_EQ(Random(1234567).state(), (Random::State{6457827717110365317u, 3203168211198807973u,
                                                    9817491932198370423u, 4593380528125082431u}));
}

TEST(Sampler, GreedyTakesTheLargestAndOfEqualsTheLowestId) {
  Sampler sampler(greedy());
  EXPECT_EQ(sampler.sample(std::vector<float>{1, 3, 2, 3}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -5, -5}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{-kInf, -3e38f}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{0}), 0);
  std::vector<float> logits = random_logits(3, 65536, 8);
  logits[54321] = 100;
  EXPECT_EQ(sampler.sample(logits), 54321);
}

TEST(Sampler, BrokenLogitsAreErrors) {
  SamplerOptions likely = plain();
  likely.top_p = 0.5f;
  for (const SamplerOptions& options : {greedy(), plain(), likely}) {
    Sampler sampler(options);
    for (size_t size : {1u, 5u, 16u, 33u}) {
      for (size_t at = 0; at < size; at += 4) {
        std::vector<float> logits(size, 1.0f);
        logits[at] = kNan;
        EXPECT_THAT(error_of([&] { sampler.sample(logits); }), HasSubstr(fmt::format("token {} is nan", at)));
        logits[at] = kInf;
        EXPECT_THAT(error_of([&] { sampler.sample(logits); }), HasSubstr(fmt::format("token {} is inf", at)));
      }
      EXPECT_THAT(error_of([&] { sampler.sample(std::vector<float>(size, -kInf)); }), HasSubstr("are -inf"));
    }
    EXPECT_THAT(error_of([&] { sampler.sample({}); }), HasSubstr("no logits"));
  }
}

TEST(Sampler, DrawsFromTheSoftmaxAtEveryTemperature) {
  constexpr int kDraws = 40000;
  std::vector<float> logits = random_logits(5, 16, 3);
  logits[3] = -kInf;
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplerOptions options = plain();
    options.temperature = temperature;
    options.seed = 11;
    // 14 degrees of freedom: above 36.1 once in a thousand. All tokens, then through the selection of the
    // likely.
    EXPECT_LT(chi_square(draw(logits, options, kDraws), softmax(logits, double(temperature)), kDraws), 36.1);
    options.top_k = 15;
    EXPECT_LT(chi_square(draw(logits, options, kDraws), softmax(logits, double(temperature)), kDraws), 36.1);
  }
}

TEST(Sampler, DrawsFromALargeVocabulary) {
  // Blocks of partial sums, most of them without any weight: four tokens share what there is.
  constexpr int kDraws = 5000;
  std::vector<float> logits(5000, -kInf);
  const std::vector<size_t> ids = {0, 255, 256, 4999};
  for (size_t i = 0; i < ids.size(); ++i) logits[ids[i]] = std::log(static_cast<float>(i + 1));
  SamplerOptions options = plain();
  for (int top_k : {0, 4}) {
    options.top_k = top_k;
    const auto drawn = draw(logits, options, kDraws);
    ASSERT_EQ(drawn.size(), 4u);
    double statistic = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      const double expected = kDraws * (static_cast<double>(i) + 1) / 10;
      statistic += std::pow(drawn.at(TokenId(ids[i])) - expected, 2) / expected;
    }
    EXPECT_LT(statistic, 16.3);  // 3 degrees of freedom, once in a thousand
  }
}

TEST(Sampler, TopKTopPAndMinPLeaveWhatSortingLeaves) {
  uint64_t seed = 100;
  for (double spread : {1.0, 4.0}) {
    for (int top_k : {0, 1, 3, 20}) {
      for (float top_p : {0.01f, 0.3f, 0.9f, 1.0f}) {
        for (float min_p : {0.0f, 0.05f, 0.5f, 1.0f}) {
          SamplerOptions options = plain();
          options.top_k = top_k;
          options.top_p = top_p;
          options.min_p = min_p;
          options.seed = ++seed;
          options.temperature = 4;  // flattens what was selected, so that all of it gets drawn
          std::vector<float> logits = random_logits(seed, 24, spread);
          logits[7] = logits[2];  // a tie
          std::set<TokenId> drawn;
          for (const auto& [id, count] : draw(logits, options, 3000)) drawn.insert(id);
          EXPECT_EQ(drawn, naive_set(logits, options))
              << "top_k " << top_k << " top_p " << top_p << " min_p " << min_p << " spread " << spread;
        }
      }
    }
  }
}

TEST(Sampler, SelectsExactlyFromSixtyFiveThousand) {
  // From a sharp distribution to a flat one, where the selection must go deep.
  uint64_t seed = 7;
  for (double spread : {0.0, 0.01, 2.0, 8.0, 30.0}) {
    const std::vector<float> logits = random_logits(++seed, 65536, spread);
    SamplerOptions options = plain();
    options.temperature = 10;
    for (auto [top_k, top_p, min_p] : {std::tuple{0, 0.001f, 0.0f},
                                       {50, 1.0f, 0.0f},
                                       {0, 0.95f, 0.0f},
                                       {0, 1.0f, 0.2f},
                                       {1000, 0.7f, 1e-6f}}) {
      options.top_k = top_k;
      options.top_p = top_p;
      options.min_p = min_p;
      options.seed = ++seed;
      const std::set<TokenId> allowed = naive_set(logits, options);
      for (const auto& [id, count] : draw(logits, options, 8)) {
        ASSERT_TRUE(allowed.contains(id)) << "spread " << spread << " top_p " << top_p << " token " << id;
      }
    }
  }
}

TEST(Sampler, ExtremeTemperatures) {
  const std::vector<float> logits = {1, 2, 3, -kInf};
  SamplerOptions options = plain();
  options.temperature = std::numeric_limits<float>::denorm_min();
  EXPECT_EQ(draw(logits, options, 50), (std::map<TokenId, int>{{2, 50}}));
  options.top_p = 0.99f;
  EXPECT_EQ(draw(logits, options, 50), (std::map<TokenId, int>{{2, 50}}));
  options = plain();
  options.temperature = std::numeric_limits<float>::max();
  const auto drawn = draw(logits, options, 3000);
  EXPECT_EQ(drawn.size(), 3u);
  EXPECT_LT(chi_square(drawn, {1.0 / 3, 1.0 / 3, 1.0 / 3, 0}, 3000), 13.8);
}

TEST(Sampler, TheSameSeedDrawsTheSame) {
  const std::vector<float> logits = random_logits(1, 1000, 4);
  for (float top_p : {1.0f, 0.9f}) {
    SamplerOptions options = plain();
    options.top_p = top_p;
    options.seed = 42;
    Sampler a(options), b(options);
    options.seed = 43;
    Sampler c(options);
    std::vector<TokenId> from_a, from_b, from_c;
    for (int i = 0; i < 100; ++i) {
      from_a.push_back(a.sample(logits));
      from_b.push_back(b.sample(logits));
      from_c.push_back(c.sample(logits));
    }
    EXPECT_EQ(from_a, from_b);
    EXPECT_NE(from_a, from_c);
  }
}

/// How much lower the logit of token 0 (at `logit`) counts after `history`: found by asking greedily on both
/// sides.
void expect_penalty(const SamplerOptions& options, const std::vector<TokenId>& history, float logit,
                    float penalty) {
  SamplerOptions o = options;
  o.temperature = 0;
  Sampler sampler(o);
  for (TokenId id : history) sampler.accept(id);
  const float counts_as = logit - penalty;
  EXPECT_EQ(sampler.sample(std::vector<float>{logit, counts_as - 1e-4f}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{logit, counts_as + 1e-4f}), 1);
}

TEST(Sampler, PresenceAndFrequencyPenaltiesWithDecay) {
  SamplerOptions options = plain();
  options.presence_penalty = 0.5f;
  options.frequency_penalty = 0.25f;
  options.penalty_decay = 0.5f;
  expect_penalty(options, {}, 2, 0);
  expect_penalty(options, {0}, 2, 0.5f + 0.25f * 1);
  expect_penalty(options, {0, 0}, 2, 0.5f + 0.25f * 1.5f);
  expect_penalty(options, {0, 0, 0}, -2, 0.5f + 0.25f * 1.75f);
  // Two others accepted on each token's way: its own 1 has been halved twice.
  SamplerOptions three = options;
  three.temperature = 0;
  Sampler sampler(three);
  for (TokenId id : {0, 2, 2}) sampler.accept(id);
  const float zero = 1 - (0.5f + 0.25f * 0.25f), two = 1 - (0.5f + 0.25f * 1.5f);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, zero - 1e-4f, 1 - 5}), 0);
  EXPECT_EQ(sampler.sample(std::vector<float>{1, zero + 1e-4f, 1 - 5}), 1);
  EXPECT_EQ(sampler.sample(std::vector<float>{1 - 5, two - 1e-4f, 1}), 2);
  EXPECT_EQ(sampler.sample(std::vector<float>{1 - 5, two + 1e-4f, 1}), 1);

  options.penalty_decay = 1;
  expect_penalty(options, {0, 0, 0}, 2, 0.5f + 0.25f * 3);
  options.penalty_decay = 0;  // only the last token counts, presence stays
  expect_penalty(options, {0, 0, 0}, 2, 0.5f + 0.25f);
}

TEST(Sampler, RepetitionPenaltyDividesOrMultiplies) {
  SamplerOptions options = plain();
  options.repetition_penalty = 1.25f;
  expect_penalty(options, {0}, 2, 2 - 2 / 1.25f);
  expect_penalty(options, {0, 0}, 2, 2 - 2 / 1.25f);
  expect_penalty(options, {0}, -2, 0.5f);
  expect_penalty(options, {}, 2, 0);
  // Before presence and frequency.
  options.presence_penalty = 1;
  expect_penalty(options, {0}, 2, 2 - (2 / 1.25f - 1));

  Sampler sampler(options);
  sampler.accept(1);
  EXPECT_EQ(sampler.sample(std::vector<float>{0, -kInf}), 0) << "-inf stays -inf under penalties";
}

TEST(Sampler, CountsFadeWithoutEnd) {
  SamplerOptions options = plain();
  options.frequency_penalty = 1;
  options.penalty_decay = 0.5f;
  std::vector<TokenId> history = {0};
  history.insert(history.end(), 300, 1);
  SamplerOptions o = options;
  o.temperature = 0;
  Sampler sampler(o);
  for (TokenId id : history) sampler.accept(id);
  EXPECT_THAT(sampler.save(), HasSubstr("[0,0.0]"));
}

TEST(Sampler, TokensOutOfRange) {
  Sampler sampler(plain());
  EXPECT_THAT(error_of([&] { sampler.accept(-1); }), HasSubstr("token id -1"));
  sampler.accept(5);
  EXPECT_THAT(error_of([&] { sampler.sample(std::vector<float>(5)); }), HasSubstr("token 5"));
}

TEST(Sampler, SavedStateContinues) {
  SamplerOptions options = plain();
  options.presence_penalty = 0.3f;
  options.frequency_penalty = 0.3f;
  options.seed = 0xffffffffffffffff;
  const std::vector<float> logits = random_logits(9, 100, 2);
  Sampler sampler(options);
  for (int i = 0; i < 50; ++i) sampler.accept(sampler.sample(logits));
  const std::string saved = sampler.save();
  options.seed = 0;
  Sampler restored(options);
  restored.load(saved);
  EXPECT_EQ(restored.save(), saved);
  for (int i = 0; i < 50; ++i) {
    const TokenId id = sampler.sample(logits);
    ASSERT_EQ(restored.sample(logits), id);
    sampler.accept(id);
    restored.accept(id);
  }
  EXPECT_EQ(restored.save(), sampler.save());
}

TEST(Sampler, DamagedStateIsRefusedAndChangesNothing) {
  Sampler sampler(plain());
  sampler.accept(3);
  const std::string before = sampler.save();
  for (const char* bad : {
           "",
           "{",
           "[]",
           "null",
           "{}",
           R"({"random":[1,2,3,4]})",
           R"({"random":[1,2,3],"seen":[]})",
           R"({"random":[0,0,0,0],"seen":[]})",
           R"({"random":[1,2,3,-4],"seen":[]})",
           R"({"random":[1,2,3,4.5],"seen":[]})",
           R"({"random":[1,2,3,99999999999999999999],"seen":[]})",
           R"({"random":"1234","seen":[]})",
           R"({"random":[1,2,3,4],"seen":{}})",
           R"({"random":[1,2,3,4],"seen":[1]})",
           R"({"random":[1,2,3,4],"seen":[[1]]})",
           R"({"random":[1,2,3,4],"seen":[[-1,1.0]]})",
           R"({"random":[1,2,3,4],"seen":[[2147483648,1.0]]})",
           R"({"random":[1,2,3,4],"seen":[[2,1.0],[2,1.0]]})",
           R"({"random":[1,2,3,4],"seen":[[2,1.0],[1,1.0]]})",
           R"({"random":[1,2,3,4],"seen":[[1,-1.0]]})",
           R"({"random":[1,2,3,4],"seen":[[1,1e39]]})",
           R"({"random":[1,2,3,4],"seen":[[1,"x"]]})",
       }) {
    EXPECT_THAT(error_of([&] { sampler.load(bad); }), HasSubstr("saved sampler state is damaged")) << bad;
    EXPECT_EQ(sampler.save(), before) << bad;
  }
}

TEST(SamplerOptions, ErrorsNameTheFlag) {
  const auto refuses = [](auto set, const char* message) {
    SamplerOptions options;
    set(options);
    EXPECT_EQ(error_of([&] { check_sampler_options(options); }), message);
    EXPECT_THROW(Sampler{options}, UsageError);
  };
  refuses([](auto& o) { o.temperature = -0.5f; }, "--temperature must be 0 or more, not -0.5");
  refuses([](auto& o) { o.temperature = kNan; }, "--temperature must be 0 or more, not nan");
  refuses([](auto& o) { o.temperature = kInf; }, "--temperature must be 0 or more, not inf");
  refuses([](auto& o) { o.top_p = 0; }, "--top-p must be in (0, 1], not 0");
  refuses([](auto& o) { o.top_p = 1.5f; }, "--top-p must be in (0, 1], not 1.5");
  refuses([](auto& o) { o.top_p = kNan; }, "--top-p must be in (0, 1], not nan");
  refuses([](auto& o) { o.top_k = -1; }, "--top-k must be 0 (no limit) or more, not -1");
  refuses([](auto& o) { o.min_p = -0.25f; }, "--min-p must be in [0, 1], not -0.25");
  refuses([](auto& o) { o.min_p = 2; }, "--min-p must be in [0, 1], not 2");
  refuses([](auto& o) { o.presence_penalty = kInf; }, "--presence-penalty must be a finite number, not inf");
  refuses([](auto& o) { o.frequency_penalty = kNan; },
          "--frequency-penalty must be a finite number, not nan");
  refuses([](auto& o) { o.penalty_decay = 1.5f; }, "--penalty-decay must be in [0, 1], not 1.5");
  refuses([](auto& o) { o.repetition_penalty = 0; }, "--repetition-penalty must be more than 0, not 0");
}

}  // namespace
}  // namespace rwkvx
