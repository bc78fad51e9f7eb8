#include "cli/options.h"

#include "base/error.h"
#include "cli/default_model.h"
#include "ops/ops.h"

namespace rwkvx::cli {

ModelOptions RunOptions::model_options() const {
  ModelOptions o;
  o.path = model;
  if (chunk_size > 0) o.chunk_size = chunk_size;
  if (chunk_top_k > 0) o.top_k = chunk_top_k;
  o.vocabulary = vocabulary_path();
  o.backend = backend;
  o.precision = precision == "bf16" ? Precision::bf16 : Precision::f32;
  o.threads = threads;
  o.kv = kv;
  return o;
}

CheckpointOptions RunOptions::checkpoint_options() const {
  const ModelOptions o = model_options();
  return {o.chunk_size, o.top_k};
}

std::optional<Path> RunOptions::vocabulary_path() const {
  return vocabulary.empty() ? std::nullopt : std::optional<Path>(vocabulary);
}

void add_model_argument(CLI::App& app, RunOptions& options) {
  app.add_option(
      "MODEL", options.model,
      "Model file: .pth, .safetensors or .gguf (default: the one that comes with rwkvx, or $RWKVX_MODEL)");
  // Looked for only when the command is known to run: --help and wrong flags need no model.
  app.parse_complete_callback([&options] {
    if (options.model.empty()) options.model = default_model();
  });
}

void add_chunk_options(CLI::App& app, RunOptions& options) {
  app.add_option("--chunk-size", options.chunk_size,
                 "Tokens of an attention chunk, where the file does not record it (default 2048)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  app.add_option("--chunk-top-k", options.chunk_top_k,
                 "Chunks that a query sees, its own included (default 3)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
}

void add_vocabulary_option(CLI::App& app, RunOptions& options) {
  app.add_option("--vocab", options.vocabulary,
                 "World vocabulary (rwkv_vocab_v20230424.txt), for files that carry none; 'byte' for bytes");
}

namespace {

/// What is wrong with a flag's value is wrong usage.
template <typename Parse>
void as_usage(const Parse& parse) {
  try {
    parse();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

void add_kv_options(CLI::App& app, RunOptions& options) {
  app.add_option_function<std::string>(
         "--kv",
         [&options](const std::string& text) { as_usage([&] { parse_kv_policy(text, options.kv); }); },
         "What sparse attention remembers: full; host[:GB], the same in the host's memory, with copies of "
         "what is read often in so many GB of the GPU's (2); disk[:FOLDER], in a temporary file; or "
         "bounded[:MAX,WINDOW,MIN[,RULE]]: when MAX tokens are stored keep MIN (20000,2000,16000): the last "
         "WINDOW, and of the others by RULE those that the window looked at (votes), those unlike the rest "
         "(keys), or half by each (both, the default)")
      ->default_str("full");
  app.add_option_function<std::string>(
         "--kv-dtype",
         [&options](const std::string& text) {
           options.kv.dtype = text == "f32" ? DType::f32 : text == "bf16" ? DType::bf16 : DType::i8;
         },
         "Type of stored keys and values: f32, bf16 or int8 (default: int8 with quantised weights on the "
         "cpu, else --precision's)")
      ->check(CLI::IsMember({"f32", "bf16", "int8"}));
  app.add_option_function<std::string>(
         "--select",
         [&options](const std::string& text) { as_usage([&] { parse_selection(text, options.kv); }); },
         "How sparse attention chooses chunks: mean, as trained; max[:TOKENS], by the best part of so many "
         "tokens (64), for chunks larger than those of training; full, all of them, slow")
      ->default_str("mean");
}

}  // namespace

void add_run_options(CLI::App& app, RunOptions& options, const std::string& default_precision) {
  add_kv_options(app, options);
  options.precision = default_precision;
  add_chunk_options(app, options);
  app.add_option("--precision", options.precision, "Precision of matrix products: f32 or bf16")
      ->check(CLI::IsMember({"f32", "bf16"}))
      ->capture_default_str();
  app.add_option("--device,--backend", options.backend, kDeviceHelp)
      ->check([](const std::string& text) {
        return is_backend(text) ? std::string() : fmt::format("{} is not one of {}", text, kDeviceHelp);
      })
      ->capture_default_str();
  app.add_option("--threads", options.threads,
                 "Threads; 0 for one on each hardware thread that the process may use")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
}

}  // namespace rwkvx::cli
