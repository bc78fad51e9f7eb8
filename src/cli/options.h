#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>

#include "runtime/model_loader.h"

namespace rwkvx::cli {

/// Bound of --max-tokens.
inline constexpr int64_t kMostTokens = int64_t{1} << 40;

/// The options of every command that runs a model.
struct RunOptions {
  std::string model;
  std::string precision, backend = "cpu";
  int64_t chunk_size = 0, chunk_top_k = 0;  // 0: not given
  int threads = 0;
  KvOptions kv;
  std::string vocabulary;

  ModelOptions model_options() const;
  CheckpointOptions checkpoint_options() const;
  std::optional<Path> vocabulary_path() const;
};

void add_model_argument(CLI::App& app, RunOptions& options);
void add_run_options(CLI::App& app, RunOptions& options, const std::string& default_precision);
void add_chunk_options(CLI::App& app, RunOptions& options);
void add_vocabulary_option(CLI::App& app, RunOptions& options);

/// A subcommand: declares its flags and sets the callback that runs it.
void add_info(CLI::App& app);
void add_logits(CLI::App& app);
void add_generate(CLI::App& app);
void add_chat(CLI::App& app);
void add_tokenize(CLI::App& app);
void add_detokenize(CLI::App& app);
void add_convert(CLI::App& app);
void add_quantize(CLI::App& app);
void add_bench(CLI::App& app);
void add_recall(CLI::App& app);
void add_expand(CLI::App& app);
void add_data(CLI::App& app);
void add_train(CLI::App& app);
void add_needle(CLI::App& app);
void add_loss(CLI::App& app);

}  // namespace rwkvx::cli
