#include "model/expand.h"

#include "cli/write_model.h"

namespace rwkvx::cli {
namespace {

struct ExpandOptions {
  WriteModelOptions write;
  int64_t sparse_blocks = 0;
  bool copy_outputs = false;
};

void run(const ExpandOptions& options) {
  format_of(options.write);
  const CheckpointOptions chunks = options.write.run.checkpoint_options();
  const auto source = open_checkpoint(options.write.run.model, chunks);
  write_model(expand(*source, options.sparse_blocks, chunks, options.copy_outputs), options.write, "expand");
}

}  // namespace

void add_expand(CLI::App& app) {
  auto* command = app.add_subcommand(
      "expand", "Put untrained sparse attention blocks into an RWKV-7 model; its outputs stay the same");
  auto options = std::make_shared<ExpandOptions>();
  add_write_model_options(*command, options->write);
  command->add_option("--sparse-blocks", options->sparse_blocks, "How many, spread evenly")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_flag("--copy-outputs", options->copy_outputs,
                    "Copy the matrices that would be zero, too: the outputs change, for comparison");
  command->callback([options] { run(*options); });
}

}  // namespace rwkvx::cli
