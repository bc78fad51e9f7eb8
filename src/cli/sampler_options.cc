#include "cli/sampler_options.h"

#include <random>

namespace rwkvx::cli {

SamplerOptions SamplerFlags::resolved() const {
  SamplerOptions o = options;
  o.seed = seed ? *seed : std::random_device{}();
  check_sampler_options(o);
  return o;
}

void add_sampler_options(CLI::App& app, SamplerFlags& flags) {
  SamplerOptions& o = flags.options;
  const auto add = [&](const char* name, auto& value, const char* help) {
    app.add_option(name, value, help)->capture_default_str()->group("Sampling");
  };
  add("--temperature", o.temperature, "0 takes the most likely token");
  add("--top-p", o.top_p, "Keep the most likely tokens up to this probability");
  add("--top-k", o.top_k, "Keep this many of the most likely tokens; 0 for no limit");
  add("--min-p", o.min_p, "Drop tokens less likely than this share of the most likely one");
  add("--presence-penalty", o.presence_penalty, "Taken off the logits of tokens that were generated");
  add("--frequency-penalty", o.frequency_penalty, "Taken off for each time, decayed");
  add("--penalty-decay", o.penalty_decay, "Decay of those counts with each token");
  add("--repetition-penalty", o.repetition_penalty,
      "Divides the logits of tokens that were generated; 1 for none");
  app.add_option("--seed", flags.seed, "The same seed gives the same text; drawn and shown if not given")
      ->check(CLI::NonNegativeNumber)
      ->group("Sampling");
}

}  // namespace rwkvx::cli
