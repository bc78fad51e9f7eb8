#include "training/mixture/resets.h"

#include "base/error.h"

namespace rwkvx {

ResetRule read_reset_rule(const Fields::Json& json, const std::string& where) {
  constexpr int64_t kMost = int64_t{1} << 24;
  Fields fields(json, where);
  ResetRule rule;
  rule.share = fields.number("share", 1, 0, 1);
  if (fields.has("every")) rule.every = fields.range("every", {}, 1, kMost);
  if (fields.has("places")) rule.places = fields.range("places", {}, 0, kMost);
  rule.questions = fields.number("questions", 0, 0, 1);
  fields.finish();
  return rule;
}

void draw_resets(const ResetRule& rule, const Sample& sample, Random& random, std::span<uint8_t> resets) {
  const auto rows = static_cast<int64_t>(resets.size());
  if (random.uniform() < rule.share && (rule.every || rule.places)) {
    if (rule.every && (!rule.places || random.next() % 2 == 0)) {
      for (int64_t at = draw(*rule.every, random); at < rows; at += draw(*rule.every, random))
        resets[static_cast<size_t>(at)] = 1;
    } else {
      for (int64_t left = draw(*rule.places, random); left > 0; --left)
        resets[static_cast<size_t>(draw({0, rows - 1}, random))] = 1;
    }
  }
  if (random.uniform() < rule.questions) {
    for (const size_t at : sample.questions) {
      if (at < resets.size()) resets[at] = 1;
    }
  }
}

}  // namespace rwkvx
