#include "cli/write_model.h"

namespace rwkvx::cli {
namespace {

void run(const WriteModelOptions& options) {
  format_of(options);  // a wrong command line is said before the model is read
  write_model(*open_checkpoint(options.run.model, options.run.checkpoint_options()), options, "convert");
}

}  // namespace

void add_convert(CLI::App& app) {
  auto* command = app.add_subcommand("convert", "Convert a model between .pth, .safetensors and GGUF");
  auto options = std::make_shared<WriteModelOptions>();
  add_write_model_options(*command, *options);
  command->callback([options] { run(*options); });
}

}  // namespace rwkvx::cli
