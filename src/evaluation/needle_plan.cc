#include "evaluation/needle_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>

#include "base/assert.h"
#include "base/error.h"
#include "base/hash.h"

namespace rwkvx {
namespace {

int64_t size_of(const std::vector<TokenId>& tokens) { return static_cast<int64_t>(tokens.size()); }

/// A stream of random numbers of its own for each purpose.
Random stream(const std::string& purpose) { return Random(hash64(std::as_bytes(std::span(purpose)))); }

/// Draws until nothing of it was there before: neither among `taken` nor in the haystack.
template <typename Draw>
std::string draw_new(Draw draw, const Haystack& haystack, std::set<std::string>& taken) {
  for (int tries = 0; tries < 1000; ++tries) {
    std::string drawn = draw();
    if (haystack.text.find(drawn) == std::string::npos && taken.insert(drawn).second) return drawn;
  }
  fail("{}: no key or value can be drawn that the haystack does not hold already", haystack.name);
}

constexpr std::string_view kLongestKey = "longest-longest-key",
                           kLongestValue = "01234567-89ab-cdef-0123-456789abcdef";

struct Hidden {
  std::vector<TokenId> tokens;
  int64_t place = 0;  ///< tokens of the haystack before it
};

/// What all depths of a repeat have in common.
struct Surroundings {
  std::string key;                  ///< that is asked for; empty: each needle has its own
  std::vector<std::string> values;  ///< of that key, in the trunk
  std::vector<Hidden> others;       ///< by rising place; places are fractions until the length is known
  std::vector<double> fractions;
  std::set<std::string> taken;
};

class Planner {
 public:
  Planner(const NeedleTask& task, const NeedleGrid& grid, const Haystack& haystack,
          const Tokenizer& tokenizer)
      : task_(task),
        grid_(grid),
        haystack_(haystack),
        tokenizer_(tokenizer),
        intro_(tokenizer.encode(task.text.intro)),
        longest_own_(static_cast<int64_t>((fill_in(task.text.needle, kLongestKey, kLongestValue) +
                                           fill_in(task.text.question, kLongestKey, ""))
                                              .size())) {}

  NeedlePlan plan() {
    for (int64_t repeat = 0; repeat < grid_.repeats; ++repeat) {
      const Surroundings around = surroundings(repeat);
      std::vector<NeedleSample> drawn;  // one for each depth
      for (const double depth : grid_.depths) drawn.push_back(draw_sample(around, repeat, depth));
      // Alone with its haystack, a trunk is the same for all lengths and repeats.
      if (around.others.empty()) {
        if (plan_.trunks.empty()) plan_.trunks.push_back(intro_);
        for (const int64_t length : grid_.lengths) add_length(around, drawn, length, 0);
      } else {
        for (const int64_t length : grid_.lengths) {
          plan_.trunks.emplace_back();
          add_length(around, drawn, length, plan_.trunks.size() - 1);
        }
      }
    }
    return std::move(plan_);
  }

 private:
  Surroundings surroundings(int64_t repeat) const {
    Surroundings out;
    if (task_.distractors == 0 && task_.values == 1) return out;
    Random random = stream(fmt::format("{} {} others {}", grid_.seed, task_.name, repeat));
    std::vector<std::pair<double, std::string>> texts;
    const auto value = [&] {
      return draw_new([&] { return draw_value(task_.value, random); }, haystack_, out.taken);
    };
    const auto key = [&] { return draw_new([&] { return draw_key(random); }, haystack_, out.taken); };
    if (task_.values > 1) out.key = key();
    for (int64_t i = 1; i < task_.values; ++i) {
      out.values.push_back(value());
      texts.emplace_back(random.uniform(), fill_in(task_.text.needle, out.key, out.values.back()));
    }
    for (int64_t i = 0; i < task_.distractors; ++i) {
      const std::string other = key();
      const std::string its = value();
      texts.emplace_back(random.uniform(), fill_in(task_.text.needle, other, its));
    }
    std::sort(texts.begin(), texts.end());
    for (const auto& [fraction, text] : texts) {
      out.fractions.push_back(fraction);
      out.others.push_back({tokenizer_.encode(text), 0});
    }
    return out;
  }

  NeedleSample draw_sample(const Surroundings& around, int64_t repeat, double depth) const {
    Random random = stream(fmt::format("{} {} needle {} {:.6f}", grid_.seed, task_.name, repeat, depth));
    std::set<std::string> taken = around.taken;
    const std::string key =
        around.key.empty() ? draw_new([&] { return draw_key(random); }, haystack_, taken) : around.key;
    const std::string value = draw_new([&] { return draw_value(task_.value, random); }, haystack_, taken);
    NeedleSample sample;
    sample.depth = depth;
    sample.repeat = repeat;
    sample.needle = tokenizer_.encode(fill_in(task_.text.needle, key, value));
    sample.question = tokenizer_.encode(fill_in(task_.text.question, key, ""));
    sample.answers = {value};
    sample.answers.insert(sample.answers.end(), around.values.begin(), around.values.end());
    return sample;
  }

  int64_t place(int64_t hay, double depth) const {
    const auto at = static_cast<int64_t>(std::floor(depth * static_cast<double>(hay) + 1e-9));
    return task_.between_sentences && at < hay ? haystack_.sentence_end_before(at) : at;
  }

  /// Adds the samples of one length, and to their trunk what they need of it.
  void add_length(const Surroundings& around, const std::vector<NeedleSample>& drawn, int64_t length,
                  size_t trunk) {
    int64_t others = 0, most = 0;  // tokens of the other needles, and of hay
    for (const Hidden& other : around.others) others += size_of(other.tokens);
    std::vector<int64_t> hays;
    const int64_t shorter = drawn.front().repeat * grid_.end_step;
    for (const NeedleSample& sample : drawn) {
      const int64_t own = size_of(intro_) + others + size_of(sample.needle) + size_of(sample.question);
      if (length - shorter < own) {
        throw UsageError(fmt::format(
            "--lengths: task {} needs at least {} tokens for its own words; {}{} is too short", task_.name,
            own, length, shorter > 0 ? fmt::format(" less the {} tokens of --end-step", shorter) : ""));
      }
      hays.push_back(length - shorter - own);
      most = std::max(most, hays.back());
    }
    RWKVX_ASSERT(most <= size_of(haystack_.tokens));

    // Every sample of the trunk has the others at the same places, which no key or value may shift: within
    // the haystack that is left beside the longest.
    const auto least = std::max<int64_t>(0, length - shorter - size_of(intro_) - others - longest_own_);
    std::vector<Hidden> hidden = around.others;
    for (size_t i = 0; i < hidden.size(); ++i) hidden[i].place = place(least, around.fractions[i]);
    std::vector<TokenId>& tokens = plan_.trunks[trunk];
    if (hidden.empty()) {
      const auto have = static_cast<std::ptrdiff_t>(tokens.size() - intro_.size());
      if (most > have)
        tokens.insert(tokens.end(), haystack_.tokens.begin() + have, haystack_.tokens.begin() + most);
    } else {
      tokens = intro_;
      int64_t at = 0;
      for (const Hidden& other : hidden) {
        tokens.insert(tokens.end(), haystack_.tokens.begin() + at, haystack_.tokens.begin() + other.place);
        tokens.insert(tokens.end(), other.tokens.begin(), other.tokens.end());
        at = other.place;
      }
      tokens.insert(tokens.end(), haystack_.tokens.begin() + at, haystack_.tokens.begin() + most);
    }
    const auto in_trunk = [&](int64_t hay_place) {
      int64_t out = size_of(intro_) + hay_place;
      for (const Hidden& other : hidden) out += other.place <= hay_place ? size_of(other.tokens) : 0;
      return out;
    };
    for (size_t i = 0; i < drawn.size(); ++i) {
      NeedleSample sample = drawn[i];
      sample.length = length;
      sample.trunk = trunk;
      sample.insert_at = in_trunk(place(hays[i], sample.depth));
      sample.end = in_trunk(hays[i]);
      plan_.samples.push_back(std::move(sample));
    }
  }

  const NeedleTask& task_;
  const NeedleGrid& grid_;
  const Haystack& haystack_;
  const Tokenizer& tokenizer_;
  const std::vector<TokenId> intro_;
  const int64_t longest_own_;  ///< no needle and question have more tokens than their longest text has bytes
  NeedlePlan plan_;
};

}  // namespace

std::vector<TokenId> NeedlePlan::prompt(const NeedleSample& sample) const {
  const std::vector<TokenId>& trunk = trunks[sample.trunk];
  std::vector<TokenId> out(trunk.begin(), trunk.begin() + sample.insert_at);
  out.insert(out.end(), sample.needle.begin(), sample.needle.end());
  out.insert(out.end(), trunk.begin() + sample.insert_at, trunk.begin() + sample.end);
  out.insert(out.end(), sample.question.begin(), sample.question.end());
  return out;
}

NeedlePlan plan_needles(const NeedleTask& task, const NeedleGrid& grid, const Haystack& haystack,
                        const Tokenizer& tokenizer) {
  check_needle_task(task);
  return Planner(task, grid, haystack, tokenizer).plan();
}

std::vector<std::vector<size_t>> needle_order(const NeedlePlan& plan, std::span<const size_t> samples) {
  std::vector<size_t> order(samples.begin(), samples.end());
  const auto group_of = [&](size_t i) {
    const NeedleSample& s = plan.samples[i];
    return std::tie(s.trunk, s.insert_at, s.needle);
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (group_of(a) != group_of(b)) return group_of(a) < group_of(b);
    return plan.samples[a].end < plan.samples[b].end;
  });
  std::vector<std::vector<size_t>> groups;
  for (const size_t i : order) {
    if (groups.empty() || group_of(groups.back().front()) != group_of(i)) groups.emplace_back();
    groups.back().push_back(i);
  }
  return groups;
}

int64_t needle_cost(const NeedlePlan& plan, std::span<const size_t> samples) {
  std::map<size_t, int64_t> prefixes;  // by trunk
  int64_t cost = 0;
  for (const auto& group : needle_order(plan, samples)) {
    const NeedleSample& last = plan.samples[group.back()];
    prefixes[last.trunk] = last.insert_at;  // they rise
    cost += size_of(last.needle) + last.end - last.insert_at;
    for (const size_t i : group) cost += size_of(plan.samples[i].question);
  }
  for (const auto& [trunk, tokens] : prefixes) cost += tokens;
  return cost;
}

}  // namespace rwkvx
