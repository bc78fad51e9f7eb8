#include "cli/write_model.h"

#include <algorithm>

#include "base/error.h"
#include "cli/terminal.h"

namespace rwkvx::cli {

void add_write_model_arguments(CLI::App& app, WriteModelOptions& options) {
  app.add_option("IN", options.run.model, "Model file to read: .pth, .safetensors or .gguf")->required();
  app.add_option("OUT", options.output, "File to write; its ending says the format")->required();
  app.add_option("--format", options.format, "gguf, safetensors or pth, when the name does not say it")
      ->check(CLI::IsMember({"gguf", "safetensors", "pth"}));
}

void add_write_model_options(CLI::App& app, WriteModelOptions& options) {
  add_write_model_arguments(app, options);
  app.add_option("--dtype", options.dtype, "Type of the weights: f32, bf16 or f16 (default: as they are)")
      ->check(CLI::IsMember({"f32", "bf16", "f16"}));
  add_chunk_options(app, options.run);
  add_vocabulary_option(app, options.run);
}

FileFormat format_of(const WriteModelOptions& options) {
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

void write_model(const Checkpoint& checkpoint, const WriteModelOptions& options, const std::string& what,
                 std::function<DType(const TensorSpec&, DType)> matrix_type) {
  WriteOptions write;
  write.matrix_type = std::move(matrix_type);
  write.format = format_of(options);
  if (!options.dtype.empty()) write.dtype = dtype_named(options.dtype);
  if (std::filesystem::exists(options.output) &&
      std::filesystem::equivalent(options.run.model, options.output)) {
    throw UsageError("the output is the input itself; give it another name");
  }
  if (write.format == FileFormat::gguf) {
    if (const auto tokenizer = find_tokenizer(checkpoint, options.run.vocabulary_path())) {
      write.vocabulary = embedded_vocabulary(*tokenizer, checkpoint.config.vocab);
    } else {
      fmt::print(stderr,
                 "rwkvx: no tokenizer is known for this vocabulary of {}, so none is embedded (pass --vocab "
                 "rwkv_vocab_v20230424.txt for a World model)\n",
                 checkpoint.config.vocab);
    }
  }
  watch_interrupt();
  ProgressBar bar(what, "bytes");
  write_checkpoint(checkpoint, options.output, write, bar.callback());
  bar.clear();
  fmt::print(stderr, "rwkvx: wrote {}, {}\n", options.output,
             human_bytes(std::filesystem::file_size(options.output)));
}

}  // namespace rwkvx::cli
