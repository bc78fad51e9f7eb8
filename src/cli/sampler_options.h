#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>

#include "runtime/sampler.h"

namespace rwkvx::cli {

/// Sampling flags of generate and chat.
struct SamplerFlags {
  SamplerOptions options;
  std::optional<uint64_t> seed;

  /// The options with a seed drawn if none was given. Errors: UsageError that names the flag.
  SamplerOptions resolved() const;
};

void add_sampler_options(CLI::App& app, SamplerFlags& flags);

}  // namespace rwkvx::cli
