#include <algorithm>

#include "base/error.h"
#include "cli/options.h"
#include "cli/terminal.h"

namespace rwkvx::cli {
namespace {

struct ConvertOptions {
  RunOptions run;
  std::string output, dtype, format;
};

FileFormat format_of(const ConvertOptions& options) {
  std::string ending = options.format;
  if (ending.empty()) {
    ending = Path(options.output).extension().string();
    if (!ending.empty()) ending.erase(0, 1);
    std::transform(ending.begin(), ending.end(), ending.begin(),
                   [](unsigned char c) { return std::tolower(c); });
  }
  if (ending == "gguf") return FileFormat::gguf;
  if (ending == "safetensors") return FileFormat::safetensors;
  if (ending == "pth" || ending == "pt") return FileFormat::pth;
  throw UsageError(
      fmt::format("{}: the format cannot be told from its name; end it in .gguf, .safetensors or .pth, or "
                  "pass --format",
                  options.output));
}

void run(const ConvertOptions& options) {
  WriteOptions write;
  write.format = format_of(options);
  if (!options.dtype.empty()) write.dtype = dtype_named(options.dtype);
  const auto checkpoint = open_checkpoint(options.run.model, options.run.checkpoint_options());
  if (std::filesystem::exists(options.output) &&
      std::filesystem::equivalent(options.run.model, options.output)) {
    throw UsageError("the output is the input itself; give it another name");
  }
  if (write.format == FileFormat::gguf) {
    if (const auto tokenizer = find_tokenizer(*checkpoint, options.run.vocabulary_path())) {
      write.vocabulary = embedded_vocabulary(*tokenizer, checkpoint->config.vocab);
    } else {
      fmt::print(stderr,
                 "rwkvx: no tokenizer is known for this vocabulary of {}, so none is embedded (pass --vocab "
                 "rwkv_vocab_v20230424.txt for a World model)\n",
                 checkpoint->config.vocab);
    }
  }
  watch_interrupt();
  ProgressBar bar("convert", "bytes");
  write_checkpoint(*checkpoint, options.output, write, bar.callback());
  bar.clear();
  fmt::print(stderr, "rwkvx: wrote {}, {}\n", options.output,
             human_bytes(std::filesystem::file_size(options.output)));
}

}  // namespace

void add_convert(CLI::App& app) {
  auto* command = app.add_subcommand("convert", "Convert a model between .pth, .safetensors and GGUF");
  auto options = std::make_shared<ConvertOptions>();
  command->add_option("IN", options->run.model, "Model file to read: .pth, .safetensors or .gguf")
      ->required();
  command->add_option("OUT", options->output, "File to write; its ending says the format")->required();
  command
      ->add_option("--dtype", options->dtype, "Type of the weights: f32, bf16 or f16 (default: as they are)")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  command->add_option("--format", options->format, "gguf, safetensors or pth, when the name does not say it")
      ->check(CLI::IsMember({"gguf", "safetensors", "pth"}));
  add_chunk_options(*command, options->run);
  add_vocabulary_option(*command, options->run);
  command->callback([options] { run(*options); });
}

}  // namespace rwkvx::cli
