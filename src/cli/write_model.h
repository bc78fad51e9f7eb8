#pragma once

#include "cli/options.h"

namespace rwkvx::cli {

/// A model file to be written.
struct WriteModelOptions {
  RunOptions run;  ///< the input, its vocabulary and chunk settings
  std::string output, dtype, format;
};

/// IN, OUT and --format.
void add_write_model_arguments(CLI::App& app, WriteModelOptions& options);
/// These, --dtype, --chunk-size, --chunk-top-k and --vocab.
void add_write_model_options(CLI::App& app, WriteModelOptions& options);

/// The format that OUT's ending or --format says. Errors: neither does.
FileFormat format_of(const WriteModelOptions& options);

/// Writes `checkpoint`, which was read from the input, with a progress bar named `what`. Errors: OUT is the
/// input; those of write_checkpoint.
void write_model(const Checkpoint& checkpoint, const WriteModelOptions& options, const std::string& what,
                 std::function<DType(const TensorSpec&, DType)> matrix_type = {});

}  // namespace rwkvx::cli
