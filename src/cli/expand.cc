#include "model/expand.h"

#include "cli/write_model.h"

namespace rwkvx::cli {
namespace {

struct ExpandOptions {
  WriteModelOptions write;
  Expansion expansion;
};

void run(const ExpandOptions& options) {
  format_of(options.write);
  Expansion expansion = options.expansion;
  expansion.chunks = options.write.run.checkpoint_options();
  const auto source = open_checkpoint(options.write.run.model, expansion.chunks);
  write_model(expand(*source, expansion), options.write, "expand");
}

}  // namespace

void add_expand(CLI::App& app) {
  auto* command = app.add_subcommand(
      "expand", "Put untrained sparse attention blocks into an RWKV-7 model; its outputs stay the same");
  auto options = std::make_shared<ExpandOptions>();
  add_write_model_options(*command, options->write);
  command->add_option("--sparse-blocks", options->expansion.sparse_blocks, "How many, spread evenly")
      ->required()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_option("--sparse-after", options->expansion.sparse_after,
                      "Or where: RWKV-7 blocks before each, such as 2,4 (not for .pth)");
  command->add_flag("--copy-outputs", options->expansion.copy_outputs,
                    "Copy the matrices that would be zero, too: the outputs change, for comparison");
  command->callback([options] { run(*options); });
}

}  // namespace rwkvx::cli
