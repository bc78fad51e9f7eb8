#include <numeric>

#include "base/error.h"
#include "cli/input.h"
#include "cli/options.h"
#include "cli/terminal.h"

namespace rwkvx::cli {
namespace {

constexpr int64_t kRowsPerPass = 1024;

struct LogitsOptions {
  RunOptions run;
  std::string tokens, output;
  TextInput text;
};

/// Token ids of B sequences of T tokens.
struct Tokens {
  std::vector<int32_t> ids;
  int64_t batch = 0, length = 0;
};

Tokens read_tokens(const Path& path) {
  const Catalog file = open_catalog(path);
  const CatalogTensor* tensor = file.find("tokens");
  if (tensor == nullptr) fail("{}: no tensor 'tokens' [B, T] in it", path.string());
  const ConstView data = tensor->data;
  if (data.shape().rank() != 2 && data.shape().rank() != 1) {
    fail("{}: tensor tokens has shape {}; [B, T] is needed", path.string(), data.shape().str());
  }
  Tokens tokens;
  tokens.batch = data.shape().rank() == 2 ? data.dim(0) : 1;
  tokens.length = data.dim(-1);
  if (data.elements() == 0) fail("{}: tensor tokens is empty, {}", path.string(), data.shape().str());
  tokens.ids.resize(static_cast<size_t>(data.elements()));
  for (int64_t i = 0; i < data.elements(); ++i) {
    int64_t id = 0;
    if (data.dtype() == DType::i64) {
      id = data.as<int64_t>()[i];
    } else if (data.dtype() == DType::i32) {
      id = data.as<int32_t>()[i];
    } else {
      fail("{}: tensor tokens is of type {}; i64 or i32 is needed", path.string(), name(data.dtype()));
    }
    if (id < 0 || id > INT32_MAX)
      fail("{}: token {} at index {} is outside any vocabulary", path.string(), id, i);
    tokens.ids[static_cast<size_t>(i)] = static_cast<int32_t>(id);
  }
  return tokens;
}

void check_vocabulary(const Tokens& tokens, const Model& model) {
  for (size_t i = 0; i < tokens.ids.size(); ++i) {
    if (tokens.ids[i] >= model.config().vocab) {
      fail("token {} at sequence {}, position {} is outside the model's vocabulary of {}", tokens.ids[i],
           static_cast<int64_t>(i) / tokens.length, static_cast<int64_t>(i) % tokens.length,
           model.config().vocab);
    }
  }
}

/// [B, T, V] float32. All sequences advance together, a segment at a time.
Buffer compute(const Model& model, const Tokens& tokens, const Progress& progress) {
  const int64_t B = tokens.batch, T = tokens.length, V = model.config().vocab;
  Buffer out(DType::f32, {B, T, V});
  Arena arena(model.ops().allocator());
  const int64_t group = std::min(B, kRowsPerPass);
  for (int64_t first = 0; first < B; first += group) {
    const int64_t count = std::min(group, B - first);
    std::vector<State> states;
    for (int64_t b = 0; b < count; ++b) states.push_back(model.new_state());
    const int64_t segment = std::max<int64_t>(1, kRowsPerPass / count);
    for (int64_t t = 0; t < T; t += segment) {
      const int64_t n = std::min(segment, T - t);
      progress(static_cast<uint64_t>(first * T + count * t), static_cast<uint64_t>(B * T));
      std::vector<SequenceInput> inputs;
      for (int64_t b = 0; b < count; ++b) {
        inputs.push_back(
            {std::span(tokens.ids).subspan(static_cast<size_t>((first + b) * T + t), static_cast<size_t>(n)),
             &states[static_cast<size_t>(b)]});
      }
      const Arena::Scope scope(arena);
      const View logits = arena.take(DType::f32, {count * n, V});
      model.forward(inputs, LogitsOf::all, logits, arena);
      for (int64_t b = 0; b < count; ++b) {
        model.ops().download(logits.rows(b * n, n).data(),
                             out.view().rows(first + b, 1).reshaped({T, V}).rows(t, n).raw());
      }
    }
  }
  return out;
}

void run(const LogitsOptions& options) {
  if (options.tokens.empty() == !options.text.given()) {
    throw UsageError("pass either --tokens IN.safetensors or a text (--text, --text-file)");
  }
  check_writable(options.output);
  const auto model = load_model(options.run.model_options());
  Tokens tokens;
  if (!options.tokens.empty()) {
    tokens = read_tokens(options.tokens);
  } else {
    const auto tokenizer = load_tokenizer(model->checkpoint(), options.run.vocabulary_path());
    tokens.ids = tokenizer->encode(options.text.read("--text, --text-file"));
    if (tokens.ids.empty()) fail("the text is empty; logits need at least one token");
    tokens.batch = 1;
    tokens.length = static_cast<int64_t>(tokens.ids.size());
  }
  check_vocabulary(tokens, *model);
  watch_interrupt();
  ProgressBar bar("logits", "tokens");
  const Buffer logits = compute(*model, tokens, bar.callback());
  bar.clear();
  Buffer ids(DType::i64, {tokens.batch, tokens.length});
  std::copy(tokens.ids.begin(), tokens.ids.end(), ids.as<int64_t>());
  const TensorToWrite out[] = {
      {"logits", DType::f32, logits.view().shape(), [&] { return logits.view(); }},
      {"tokens", DType::i64, ids.view().shape(), [&] { return ConstView(ids.view()); }}};
  write_safetensors(options.output, out,
                    {{"model", options.run.model}, {"precision", options.run.precision}});
}

}  // namespace

void add_logits(CLI::App& app) {
  auto* command = app.add_subcommand("logits", "Write the logits of given tokens or text, float32 [B, T, V]");
  auto options = std::make_shared<LogitsOptions>();
  add_model_argument(*command, options->run);
  command->add_option("--tokens", options->tokens, "A .safetensors file with an i64 tensor 'tokens' [B, T]");
  command->add_option("--text", options->text.text, "A text instead, tokenized as one sequence");
  command->add_option("--text-file", options->text.file, "A text from a file; - for stdin");
  command->add_option("--out", options->output, "The .safetensors file to write: 'logits' and 'tokens'")
      ->required();
  add_run_options(*command, options->run, "f32");
  add_vocabulary_option(*command, options->run);
  command->callback([options] { run(*options); });
}

}  // namespace rwkvx::cli
