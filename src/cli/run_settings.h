#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "cli/options.h"

namespace rwkvx::cli {

/// What a model's numbers depend on, for the records of evaluations: the weights, and how they are run.
nlohmann::ordered_json run_settings(const RunOptions& options, const Model& model,
                                    const Tokenizer& tokenizer);

/// "chunk 2048, top-k 3", or "no attention", for pictures.
std::string attention_label(const Model& model);

/// Throws UsageError now for a name of a picture that could not be written after long work. "" is none.
void check_picture_name(const std::string& name);

}  // namespace rwkvx::cli
