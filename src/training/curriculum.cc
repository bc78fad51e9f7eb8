#include "training/curriculum.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"

namespace rwkvx {

std::vector<MixturePhase> parse_curriculum(const std::string& text) {
  std::vector<MixturePhase> phases;
  const char *at = text.data(), *const end = text.data() + text.size();
  const auto number = [&](int64_t& value) {
    const auto [stopped, error] = std::from_chars(at, end, value);
    const bool good = error == std::errc() && value >= 1;
    at = stopped;
    return good;
  };
  bool good = !text.empty();
  for (bool more = good; good && more;) {
    MixturePhase& phase = phases.emplace_back();
    good = number(phase.context) && phase.context <= 1 << 24;
    const bool open = at == end || *at != ':';
    if (good && !open) {
      ++at;
      good = number(phase.steps);
    }
    more = at != end;
    // Only the last may be open.
    good = good && (!more || (!open && *at == ','));
    if (more) ++at;
  }
  if (!good) {
    throw UsageError(
        fmt::format("--curriculum must be like 256:120,512:350,1024 (CONTEXT:STEPS, ..., CONTEXT), not '{}'",
                    printable(text)));
  }
  return phases;
}

std::vector<Phase> phases_of(const TrainConfig& config, const std::vector<MixturePhase>& given) {
  if (given.empty()) return {{0, config.context, config.batch, config.lr}};
  std::vector<Phase> phases;
  int64_t begin = 0;
  for (const MixturePhase& from : given) {
    Phase phase{begin, from.context > 0 ? from.context : config.context, from.batch, from.lr, from};
    if (phase.lr == 0) phase.lr = config.lr;
    if (phase.batch == 0) phase.batch = config.batch * config.context / phase.context;
    if (phase.batch == 0 || phase.batch > (int64_t{1} << 31) / phase.context) {
      throw UsageError(
          fmt::format("phase {}: batches of --batch {} x --context {} tokens do not fit sequences of {}; "
                      "choose another --batch, "
                      "or give the phase one",
                      phases.size(), config.batch, config.context, phase.context));
    }
    begin += from.steps;
    phases.push_back(std::move(phase));
  }
  return phases;
}

size_t phase_at(const std::vector<Phase>& phases, int64_t step) {
  size_t at = 0;
  while (at + 1 < phases.size() && step >= phases[at + 1].begin) ++at;
  return at;
}

int64_t tokens_before(const std::vector<Phase>& phases, int64_t step) {
  int64_t tokens = 0;
  for (size_t i = 0; i < phases.size() && phases[i].begin < step; ++i) {
    const int64_t end = i + 1 < phases.size() ? std::min(step, phases[i + 1].begin) : step;
    tokens += (end - phases[i].begin) * phases[i].batch * phases[i].context;
  }
  return tokens;
}

}  // namespace rwkvx
