#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/input.h"
#include "cli/options.h"
#include "cli/sampler_options.h"
#include "cli/terminal.h"
#include "runtime/generator.h"

namespace rwkvx::cli {
namespace {

struct GenerateOptions {
  RunOptions run;
  TextInput prompt;
  SamplerFlags sampler;
  GenerationOptions generation;
  std::string state_in, state_out;
  bool json = false;
};

/// The prompt's tokens, or the end of a document where a World model is to begin from nothing.
std::vector<TokenId> prompt_tokens(const GenerateOptions& options, const Tokenizer& tokenizer) {
  if (!options.prompt.given() && !options.state_in.empty()) return {};
  const std::string text = options.prompt.read("--prompt, --prompt-file");
  std::vector<TokenId> tokens = tokenizer.encode(text);
  if (tokens.empty() && options.state_in.empty() && tokenizer.end_of_document() >= 0) {
    tokens.push_back(tokenizer.end_of_document());
  }
  return tokens;
}

double per_second(size_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

void run(const GenerateOptions& options) {
  const SamplerOptions sampler_options = options.sampler.resolved();
  if (options.prompt.text && !options.prompt.file.empty()) {
    throw UsageError("pass either --prompt or --prompt-file, not both");
  }
  if (!options.state_out.empty()) check_writable(options.state_out);
  const auto model = load_model(options.run.model_options());
  const auto tokenizer = load_tokenizer(model->checkpoint(), options.run.vocabulary_path());
  Session session(model);
  Sampler sampler(sampler_options);
  if (!options.state_in.empty()) {
    const auto extra = nlohmann::json::parse(session.load(options.state_in), nullptr, false);
    if (!options.sampler.seed && extra.is_object() && extra.contains("sampler") &&
        extra["sampler"].is_string()) {
      sampler.load(extra["sampler"].get<std::string>());
    }
  }
  const std::vector<TokenId> prompt = prompt_tokens(options, *tokenizer);
  session.append(prompt);

  watch_interrupt();
  ProgressBar bar("prompt", "tokens");
  std::string text;
  Generation generation;
  try {
    generation = generate(
        session, *tokenizer, sampler, options.generation,
        [&](std::string_view piece) {
          bar.clear();
          text += piece;
          if (!options.json) print(piece);
        },
        &interrupted(), bar.callback());
  } catch (const Interrupted&) {
    generation.reason = StopReason::interrupted;
  }
  bar.clear();
  const bool line_open = !options.json && !text.empty() && text.back() != '\n';
  if (!options.state_out.empty()) {
    session.save(options.state_out, nlohmann::json{{"sampler", sampler.save()}}.dump());
  }

  const size_t decoded =
      generation.tokens.empty() ? 0 : generation.tokens.size() - 1;  // after the prompt's own token
  if (options.json) {
    const nlohmann::ordered_json out = {
        {"text", text},
        {"tokens", generation.tokens},
        {"stop_reason", name(generation.reason)},
        {"prompt_tokens", prompt.size()},
        {"generated_tokens", generation.tokens.size()},
        {"context_tokens", session.length()},
        {"prompt_seconds", generation.first_seconds},
        {"prompt_tokens_per_second", per_second(prompt.size(), generation.first_seconds)},
        {"generate_seconds", generation.rest_seconds},
        {"generate_tokens_per_second", per_second(decoded, generation.rest_seconds)},
        {"seed", sampler_options.seed},
        {"state_bytes", session.state().bytes()},
        {"peak_memory_bytes", peak_resident_bytes()}};
    print(out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
  } else {
    fmt::print(stderr,
               "{}rwkvx: prompt {} tokens, {:.1f} tokens/s; generated {} tokens, {:.1f} tokens/s ({}); "
               "state {}, memory {} at most; seed {}\n",
               line_open ? "\n" : "", prompt.size(), per_second(prompt.size(), generation.first_seconds),
               generation.tokens.size(), per_second(decoded, generation.rest_seconds),
               name(generation.reason), human_bytes(session.state().bytes()),
               human_bytes(peak_resident_bytes()), sampler_options.seed);
  }
  if (generation.reason == StopReason::interrupted) throw Interrupted{};
}

}  // namespace

void add_generate(CLI::App& app) {
  auto* command =
      app.add_subcommand("generate", "Continue a prompt; the text goes to stdout as it is sampled");
  auto o = std::make_shared<GenerateOptions>();
  add_model_argument(*command, o->run);
  command->add_option("--prompt", o->prompt.text, "The text to continue");
  command->add_option("--prompt-file", o->prompt.file, "The text from a file, any bytes; - for stdin");
  command
      ->add_option("--max-tokens", o->generation.max_tokens,
                   "Stop after this many tokens; 0 only reads the prompt")
      ->check(CLI::Range(int64_t{0}, kMostTokens))
      ->capture_default_str();
  command->add_option("--stop", o->generation.stops, "Stop before this text; may be given several times")
      ->allow_extra_args(false);
  command->add_flag("--ignore-end", o->generation.ignore_end, "Go on after the end-of-document token");
  command->add_option("--state-in", o->state_in, "Continue from a saved state");
  command->add_option("--state-out", o->state_out, "Save the state at the end, to be continued from");
  command->add_flag("--json", o->json, "Print one JSON object with the text, tokens and speeds");
  add_sampler_options(*command, o->sampler);
  add_run_options(*command, o->run, "bf16");
  add_vocabulary_option(*command, o->run);
  command->callback([o] { run(*o); });
}

}  // namespace rwkvx::cli
